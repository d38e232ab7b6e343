"""A shop with Django in one file: requests, and what happened to an order, in the admin.

pip install afterwrite django psycopg
export DATABASE_URL=postgresql://localhost/shop
python examples/django_shop/site.py migrate
python examples/django_shop/site.py createsuperuser
python examples/django_shop/site.py runserver        # then http://localhost:8000/admin/shop/order/
"""

import os
import sys

import django
from django.apps import AppConfig
from django.conf import settings
from django.core.management import execute_from_command_line
from psycopg.conninfo import conninfo_to_dict


class Shop(AppConfig):
    name = __name__
    label = "shop"
    default_auto_field = "django.db.models.AutoField"


_told = conninfo_to_dict(os.environ["DATABASE_URL"])

settings.configure(
    DEBUG=True,
    SECRET_KEY="an example's",  # noqa: S106 - of an example
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.admin",
        "django.contrib.staticfiles",
        # Stamps what every connection writes.
        "afterwrite.integrations.django.Afterwrite",
        f"{__name__}.Shop",
    ],
    MIDDLEWARE=[
        # First: what the others write belongs to the request too.
        "afterwrite.integrations.django.ContextMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    AFTERWRITE_TRUSTED_PROXIES=["127.0.0.1", "::1"],
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
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _told["dbname"],
            "HOST": _told.get("host", ""),
            "PORT": _told.get("port", ""),
            "USER": _told.get("user", ""),
            "PASSWORD": _told.get("password", ""),
        }
    },
    STATIC_URL="/static/",
    USE_TZ=True,
)
django.setup()

from django.contrib import admin  # noqa: E402 - models need the settings
from django.db import connection, models  # noqa: E402
from django.db.models.signals import post_migrate  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

from afterwrite.integrations.django import TimelineMixin  # noqa: E402


class Order(models.Model):
    what = models.TextField()
    sent = models.BooleanField(default=False)

    class Meta:
        app_label = "shop"
        db_table = "orders"

    def __str__(self) -> str:
        return f"{self.what} ({self.pk})"


@admin.register(Order)
class OrderAdmin(TimelineMixin, admin.ModelAdmin):
    list_display = ("what", "sent")


def order(request: HttpRequest) -> JsonResponse:
    made = Order.objects.create(what=request.GET["what"])
    return JsonResponse({"order": made.pk}, status=201)


def make_table(**_: object) -> None:
    if "orders" not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Order)


post_migrate.connect(make_table)
urlpatterns = [path("orders", order), path("admin/", admin.site.urls)]

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
