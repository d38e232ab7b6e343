"""Functions that the scanner knows by name, because their text does not say what they do."""

from __future__ import annotations

# They reach outside the transaction: not undone by a rollback, or a request to somebody else.
OUTSIDE = frozenset(
    {
        *("http", "http_get", "http_post", "http_put", "http_patch", "http_delete", "http_head", "http_request"),
        *("dblink", "dblink_exec", "dblink_send_query", "dblink_connect", "dblink_connect_u", "dblink_open"),
        *("pg_file_write", "lo_export", "lo_import", "query_export_to_s3", "kafka_produce", "pg_logical_emit_message"),
    }
)
OUTSIDE_SCHEMAS = frozenset({"net", "http", "aws_lambda", "aws_s3"})

# What only the writer's session knows, and a later run does not.
SESSION_FUNCTIONS = frozenset(
    {
        *("pg_trigger_depth", "inet_client_addr", "inet_client_port", "inet_server_addr", "pg_backend_pid"),
        *("txid_current", "pg_current_xact_id", "txid_current_if_assigned", "pg_current_xact_id_if_assigned"),
        *("current_query", "statement_timestamp", "getpgusername", "pg_my_temp_schema", "currval", "lastval"),
    }
)

# Volatile, and yet they change nothing that anybody could see: or what they change has a fact of its own.
HARMLESS_BUILTINS = frozenset(
    {
        *(
            "random",
            "random_normal",
            "nextval",
            "setval",
            "currval",
            "lastval",
            "clock_timestamp",
            "timeofday",
            "setseed",
        ),
        *("gen_random_uuid", "uuidv4", "uuidv7", "pg_notify", "set_config", "current_query", "pg_sleep"),
        *("pg_column_size", "pg_relation_size", "pg_table_size", "pg_total_relation_size"),
        *("pg_advisory_lock", "pg_advisory_xact_lock", "pg_try_advisory_lock", "pg_try_advisory_xact_lock"),
        *("pg_advisory_lock_shared", "pg_advisory_xact_lock_shared", "pg_try_advisory_xact_lock_shared"),
        *("pg_advisory_unlock", "pg_advisory_unlock_all", "pg_try_advisory_lock_shared", "pg_advisory_unlock_shared"),
        *("inet_client_addr", "inet_client_port", "inet_server_addr", "pg_current_xact_id", "txid_current"),
    }
)
# The same for functions that extensions bring, in C.
HARMLESS_EXTENSION_FUNCTIONS = frozenset(
    {
        *("gen_random_uuid", "gen_random_bytes", "gen_salt", "crypt", "digest", "hmac"),
        *("uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v3", "uuid_generate_v4", "uuid_generate_v5"),
        *("pgp_sym_encrypt", "pgp_sym_encrypt_bytea", "pgp_pub_encrypt", "pgp_pub_encrypt_bytea", "encrypt"),
        *("pgp_sym_decrypt", "pgp_pub_decrypt", "show_limit"),
    }
)

# What they give is a piece of their text, or pieces of several: whether that is a number, only the text knows.
CUTS_TEXT = frozenset(
    {
        *("btrim", "ltrim", "rtrim", "trim", "lower", "upper", "initcap", "substring", "substr", "left", "right"),
        *("replace", "regexp_replace", "regexp_substr", "split_part", "translate", "overlay", "lpad", "rpad"),
        *("concat", "concat_ws", "reverse", "nullif", "coalesce", "jsonb_extract_path_text", "json_extract_path_text"),
        *("jsonb_extract_path", "json_extract_path", "greatest", "least"),
    }
)
# They fail on a text, or a document, that does not hold what they are to make of it. (That a document is an object, or
# an array, is taken for given.)
READS_TEXT = frozenset(
    {
        *("to_number", "to_date", "to_timestamp", "to_tsquery", "decode", "xmlparse", "parse_ident"),
        *("json_populate_record", "json_populate_recordset", "json_to_record", "json_to_recordset"),
        *("jsonb_populate_record", "jsonb_populate_recordset", "jsonb_to_record", "jsonb_to_recordset"),
    }
)
# Types that hold whatever is written.
KEEPS_TEXT = frozenset({"text", "varchar", "bpchar", "char", "name", "citext", "json", "jsonb"})

# Trigger functions written in C, and what they do to the row of a BEFORE trigger.
CHANGES_ROW = frozenset(
    {
        "tsvector_update_trigger",
        "tsvector_update_trigger_column",
        "moddatetime",
        "autoinc",
        "insert_username",
        "ttdummy",
    }
)
CANCELS_ROW = frozenset({"suppress_redundant_updates_trigger"})
FORBIDS = frozenset({"check_primary_key", "check_foreign_key", "lo_manage"})
NOTIFIES = frozenset({"triggered_change_notification"})
