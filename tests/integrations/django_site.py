"""The one Django of a test process: its settings, its model, and how its connection comes into a captured database."""

from __future__ import annotations

from typing import Any

import django
from django.apps import AppConfig
from django.conf import settings
from django.db import connection, connections, models
from psycopg.conninfo import conninfo_to_dict


class Shop(AppConfig):
    """The application whose model this is."""

    name = "django_site"
    label = "shop"


if not settings.configured:
    settings.configure(
        SECRET_KEY="tests",
        ALLOWED_HOSTS=["*"],
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "django.contrib.messages",
            "django.contrib.admin",
            "afterwrite.integrations.django.Afterwrite",
            "django_site.Shop",
        ],
        MIDDLEWARE=[
            "afterwrite.integrations.django.ContextMiddleware",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        ROOT_URLCONF="test_django_web",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        STATIC_URL="/static/",
        USE_TZ=True,
        LOGGING_CONFIG=None,
        AFTERWRITE_WRITING_FUNCTIONS=["make"],
    )
    django.setup()


class Thing(models.Model):
    name = models.TextField(null=True)
    note = models.TextField(null=True)

    class Meta:
        app_label = "shop"
        db_table = "things"
        managed = False


def connect_django(dsn: str, **options: Any) -> None:
    """Have Django's default connection, in every thread, be one to this database."""
    told = conninfo_to_dict(dsn)
    connections.close_all()
    connection.settings_dict.update(
        NAME=told["dbname"],
        HOST=told["host"],
        PORT=told.get("port", ""),
        USER=told.get("user", ""),
        OPTIONS=options,
    )
