"""What stands in for a part that a dump only names: decided from what the server said was missing.

    complaint ─▶ Want(kind, name) ─▶ the loader makes it, and the statement is tried again

Pure. A stand-in has the name and no more: a type holds text, a function computes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum

import msgspec

from afterwrite.postgres import Complaint, statement


class Missing(StrEnum):
    SCHEMA = "schema"
    TYPE = "type"
    FUNCTION = "function"
    RELATION = "table"
    ROLE = "role"
    SERVER = "foreign server"
    PUBLICATION = "publication"
    COLLATION = "collation"
    CONFIGURATION = "text search configuration"
    SETTING = "setting"


UNQUALIFIED = frozenset({Missing.SCHEMA, Missing.ROLE, Missing.SERVER, Missing.PUBLICATION, Missing.SETTING})
"""What has a name of its own and no schema."""


class Want(msgspec.Struct, frozen=True):
    """Something that a statement needs; ``schema`` is empty where it was not named, ``arguments`` are a function's."""

    kind: Missing
    schema: str
    name: str
    arguments: str = ""

    @property
    def full_name(self) -> str:
        name = f"{self.schema}.{self.name}" if self.schema else self.name
        return f"{name}()" if self.kind is Missing.FUNCTION else name


_NAME = r'"?(?P<name>[^"]+?)"?'
_COMPLAINTS = (
    (Missing.SCHEMA, re.compile(rf"^schema {_NAME} does not exist$")),
    (Missing.TYPE, re.compile(r'^type "?(?P<name>[^"]+?)(?:\[\])*"? (?:does not exist|is only a shell)$')),
    (Missing.FUNCTION, re.compile(r"^function (?P<name>[^(]+)\((?P<arguments>.*)\) does not exist$")),
    (Missing.RELATION, re.compile(rf"^relation {_NAME} does not exist$")),
    (Missing.ROLE, re.compile(rf"^role {_NAME} does not exist$")),
    (Missing.PUBLICATION, re.compile(rf"^publication {_NAME} does not exist$")),
    (Missing.SERVER, re.compile(rf"^server {_NAME} does not exist$")),
    (Missing.COLLATION, re.compile(rf'^collation {_NAME} for encoding "\w+" does not exist$')),
    (Missing.CONFIGURATION, re.compile(rf"^text search configuration {_NAME} does not exist$")),
    (Missing.SETTING, re.compile(rf"^permission denied to set parameter {_NAME}$")),
)
# Settings that audit functions change and only a superuser may; the privilege to set them is given to the owner.
GRANTED_SETTINGS = frozenset(
    {
        *("session_replication_role", "log_statement", "log_min_messages", "log_min_error_statement"),
        *("log_min_duration_statement", "track_functions", "deadlock_timeout", "lc_messages", "temp_file_limit"),
        *("log_duration", "log_parameter_max_length", "track_activities", "track_counts"),
    }
)


def wanted(complaint: Complaint) -> Want | None:
    """What is missing, where the server's words name a thing that can be stood in for."""
    for kind, pattern in _COMPLAINTS:
        found = pattern.match(complaint.message)
        if found is None:
            continue
        schema, _, name = found["name"].rpartition(".")
        if "." in schema or (kind is Missing.SETTING and found["name"] not in GRANTED_SETTINGS):
            return None
        if kind in UNQUALIFIED:
            schema, name = "", found["name"]
        arguments = found["arguments"] if kind is Missing.FUNCTION else ""
        return Want(kind, schema.strip('"'), name.strip('"'), arguments)
    return None


def surroundings() -> Mapping[tuple[Missing, str], bytes]:
    """What Supabase's own schemas hold and its schema dumps leave out, as far as triggers and policies use it."""
    return {
        (Missing.FUNCTION, "auth.uid"): statement("dump.auth_uid"),
        (Missing.FUNCTION, "auth.role"): statement("dump.auth_role"),
        (Missing.FUNCTION, "auth.email"): statement("dump.auth_email"),
        (Missing.FUNCTION, "auth.jwt"): statement("dump.auth_jwt"),
        (Missing.RELATION, "auth.users"): statement("dump.auth_users"),
        (Missing.RELATION, "storage.buckets"): statement("dump.storage_buckets"),
        (Missing.RELATION, "storage.objects"): statement("dump.storage_objects"),
        (Missing.FUNCTION, "storage.foldername"): statement("dump.storage_foldername"),
        (Missing.FUNCTION, "storage.filename"): statement("dump.storage_filename"),
        (Missing.RELATION, "realtime.messages"): statement("dump.realtime_messages"),
        (Missing.FUNCTION, "supabase_functions.http_request"): statement("dump.supabase_functions_http_request"),
    }


def mentioned(texts: Iterator[str]) -> set[tuple[Missing, str]]:
    """Which of the surroundings are named in these texts."""
    patterns = {key: re.compile(r'"?\."?'.join(map(re.escape, key[1].split("."))) + r"\b") for key in surroundings()}
    found: set[tuple[Missing, str]] = set()
    for text in texts:
        found |= {key for key, pattern in patterns.items() if key not in found and pattern.search(text)}
    return found
