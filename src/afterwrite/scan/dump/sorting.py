"""What is done with each statement of a dump: decided on its parse tree, by a list of what may be run.

    text ─▶ parse ─▶ one tree ─▶ Sorted(deed, kind, text)

Runs in the parser's child process, because some texts bring the parser down. What is run is the very text that was
parsed: where a word must go (CONCURRENTLY, TABLESPACE), the text without it is parsed again. What is not on the list is
not run; it is no list of attacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import pairwise
from typing import Any, assert_never, cast

import msgspec
import pgparse

from afterwrite.scan.dump.pieces import COPY_IN
from afterwrite.scan.tokens import Token, character_offset, items, tokens, unquote

_parse = cast("Callable[[str], list[dict[str, Any]]]", pgparse.parse)  # type: ignore[reportUnknownMemberType]
_ParseError = cast("type[Exception]", pgparse.PGQueryError)  # type: ignore[reportUnknownMemberType]
Node = dict[str, Any]

STUB_C = "afterwrite_c"


class Deed(StrEnum):
    """What becomes of a statement.

    ``run`` as it stands; ``extension``, ``schema``, ``path``, ``database_path``, ``language``, ``server``, ``role``:
    the loader does what was meant, in its own words. ``needless``: no verdict hangs on it. ``refused``: it may do more
    than define a schema. ``unreadable``: the parser did not understand it.
    """

    RUN = "run"
    EXTENSION = "extension"
    SCHEMA = "schema"
    PATH = "path"
    DATABASE_PATH = "database path"
    LANGUAGE = "language"
    SERVER = "server"
    ROLE = "role"
    NEEDLESS = "needless"
    REFUSED = "refused"
    UNREADABLE = "unreadable"


class Sorted(msgspec.Struct, frozen=True, kw_only=True):
    """A statement's deed. ``kind`` names it for people, ``text`` is what to run, ``why`` is said where it is not run.

    ``names`` are what the deed is about (the extension and its schema, the schemas of a search path, …). ``calls`` are
    the functions that the server evaluates while it defines the thing, ``needs`` those whose EXECUTE privilege it asks
    for. ``language`` is that of a function, ``returns_trigger`` whether it says so.
    """

    deed: Deed
    kind: str
    text: str = ""
    why: str = ""
    names: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    language: str = ""
    returns_trigger: bool = False


class Form(StrEnum):
    """``whole``: the statement itself. ``bare``: a table's columns, types and key; a constraint left unchecked."""

    WHOLE = "whole"
    BARE = "bare"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """A statement's text, and the form in which it is wanted."""

    text: str
    form: Form = Form.WHOLE


# Known by their first word, and never looked at again: data, privileges, upkeep.
_NEEDLESS = frozenset(
    {
        *("insert", "update", "delete", "merge", "truncate", "refresh", "grant", "revoke", "security", "reassign"),
        *("begin", "start", "commit", "end", "rollback", "abort", "savepoint", "release"),
        *("analyze", "analyse", "vacuum", "cluster", "reindex", "checkpoint"),
    }
)
_READ = frozenset({"create", "alter", "drop", "comment", "set", "reset", "select"})
_FIRST_WORD = re.compile(r"[(\s]*([a-z]+)", re.IGNORECASE)


def first_word(text: str) -> Sorted | None:
    """The answer for a statement that needs no parsing, because its first word forbids or spares it; else None."""
    found = _FIRST_WORD.match(text)
    word = found[1].lower() if found else ""
    if word in _READ:
        return None
    if word == "copy":
        return _needless("COPY … FROM stdin") if COPY_IN.match(text) else _refused("COPY", "it reads or writes files")
    if word in _NEEDLESS:
        return _needless("SECURITY LABEL" if word == "security" else word.upper())
    return _refused(word.upper()[:30] or "unknown", "it is no definition")


def answer(question: Question) -> Sorted:
    """What is done with a statement, in the form that was asked for."""
    match question.form:
        case Form.WHOLE:
            return sort_statement(question.text)
        case Form.BARE:
            return sort_statement(bare(question.text))
        case _:
            assert_never(question.form)


def sort_statement(text: str) -> Sorted:
    """What is done with a statement. Never raises for a text (but the parser under it may end the process)."""
    try:
        return _sort(text)
    except _ParseError as error:
        older = _older_words(text)
        if older != text:
            try:
                return _sort(older)
            except _ParseError:
                pass
        return Sorted(deed=Deed.UNREADABLE, kind=_headline(text), why=str(error.args[0] if error.args else error))
    except RecursionError:
        return Sorted(deed=Deed.UNREADABLE, kind=_headline(text), why="it is nested too deeply")


def _sort(text: str) -> Sorted:
    parsed = _parse(text)
    if not parsed:
        return _needless("nothing")
    if len(parsed) > 1:
        return Sorted(deed=Deed.REFUSED, kind=_headline(text), why="it is more than one statement")
    [(tag, node)] = parsed[0]["stmt"].items()
    sort = _SORTS.get(tag)
    if sort is None:
        return _refused(_headline(text))
    return sort(cast(Node, node), text)


def _run(kind: str, text: str, **more: Any) -> Sorted:
    return Sorted(deed=Deed.RUN, kind=kind, text=text, **more)


def _needless(kind: str) -> Sorted:
    return Sorted(deed=Deed.NEEDLESS, kind=kind)


def _refused(kind: str, why: str = "") -> Sorted:
    return Sorted(deed=Deed.REFUSED, kind=kind, why=why or "it is not on the list of what defines a schema")


def _headline(text: str) -> str:
    """The leading key words of a statement, to name its kind where there is no tree: CREATE EVENT TRIGGER."""
    words: list[str] = []
    for token in tokens(text[:400]):
        if token.kind != "word" or len(words) == 3 or token.text.upper() not in _HEADLINE:
            break
        words.append(token.text.upper())
    return " ".join(words) or "unknown"


_HEADLINE = frozenset(
    re.findall(
        r"\w+",
        """
        CREATE ALTER DROP COMMENT ON SET RESET SELECT OR REPLACE TEMP TEMPORARY UNLOGGED GLOBAL LOCAL TABLE VIEW
        MATERIALIZED RECURSIVE INDEX UNIQUE CONCURRENTLY SEQUENCE FUNCTION PROCEDURE ROUTINE AGGREGATE OPERATOR
        CLASS FAMILY CAST TYPE DOMAIN COLLATION CONVERSION TRIGGER CONSTRAINT EVENT RULE POLICY SCHEMA EXTENSION
        LANGUAGE TRUSTED PROCEDURAL SERVER FOREIGN DATA WRAPPER USER MAPPING ROLE GROUP DATABASE TABLESPACE
        PUBLICATION SUBSCRIPTION STATISTICS TEXT SEARCH CONFIGURATION DICTIONARY PARSER TEMPLATE TRANSFORM ACCESS
        METHOD SYSTEM DEFAULT PRIVILEGES SESSION AUTHORIZATION DO CALL LOAD LOCK LISTEN NOTIFY EXECUTE PREPARE LARGE
        OBJECT OWNED IMPORT WITH
        """,
    )
)


# Tables, views, indexes ----------------------------------------------------------------------------------------------


def _temporary(relation: Node) -> bool:
    return relation.get("relpersistence") == "t" or relation.get("schemaname") in ("pg_temp",)


def _table(node: Node, text: str) -> Sorted:
    if _temporary(node["relation"]):
        return _needless("CREATE TEMPORARY TABLE")
    if not _constant_bound(node.get("partbound")):
        return _refused("CREATE TABLE … PARTITION OF", "its partition bound would be computed by a function")
    if "tablespacename" in node or "accessMethod" in node:
        return _again(text, _without_storage, "CREATE TABLE")
    return _run("CREATE TABLE", text)


def _foreign_table(node: Node, text: str) -> Sorted:
    base = node["base"]
    if not _constant_bound(base.get("partbound")):
        return _refused("CREATE FOREIGN TABLE", "its partition bound would be computed by a function")
    return _run("CREATE FOREIGN TABLE", text)


def _constant_bound(bound: Node | None) -> bool:
    """Whether the values between which a partition lies are constants: the server computes them on the spot."""
    if bound is None:
        return True
    data = [*bound.get("listdatums", ()), *bound.get("lowerdatums", ()), *bound.get("upperdatums", ())]
    return all(_constant(datum) for datum in data)


def _constant(node: Node) -> bool:
    [(tag, value)] = node.items()
    match tag:
        case "A_Const":
            return True
        case "ColumnRef":  # MINVALUE and MAXVALUE
            return len(value["fields"]) == 1
        case "TypeCast":
            return "A_Const" in value["arg"]
        case "A_Expr":
            return value.get("kind") == "AEXPR_OP" and "lexpr" not in value and _constant(value["rexpr"])
        case _:
            return False


def _table_as(node: Node, text: str) -> Sorted:
    kind = "CREATE MATERIALIZED VIEW" if node.get("objtype") == "OBJECT_MATVIEW" else "CREATE TABLE AS"
    into = node["into"]
    if _temporary(into["rel"]):
        return _needless("CREATE TEMPORARY TABLE")
    if "SelectStmt" not in node["query"]:
        return _refused(kind, "it runs a prepared statement")
    if "tableSpaceName" in into or "accessMethod" in into:
        return _again(text, _without_storage, kind)
    if not into.get("skipData"):
        return _again(text, _without_data, kind)
    return _run(kind, text)


def _view(node: Node, text: str) -> Sorted:
    return _needless("CREATE TEMPORARY VIEW") if _temporary(node["view"]) else _run("CREATE VIEW", text)


def _index(node: Node, text: str) -> Sorted:
    if node.get("concurrent"):
        return _again(text, lambda text: _without(text, "concurrently"), "CREATE INDEX")
    if "tableSpace" in node:
        return _again(text, _without_storage, "CREATE INDEX")
    return _run("CREATE INDEX", text)


def _sequence(node: Node, text: str) -> Sorted:
    return _needless("CREATE TEMPORARY SEQUENCE") if _temporary(node["sequence"]) else _run("CREATE SEQUENCE", text)


# Commands of ALTER TABLE that a verdict may hang on; the rest is about owners and storage.
_ALTERS = frozenset(
    {
        *("AT_AddColumn", "AT_DropColumn", "AT_AlterColumnType", "AT_ColumnDefault", "AT_SetNotNull", "AT_DropNotNull"),
        *("AT_AddConstraint", "AT_AlterConstraint", "AT_DropConstraint", "AT_ValidateConstraint", "AT_AddIndex"),
        *("AT_AddIdentity", "AT_SetIdentity", "AT_DropIdentity", "AT_DropExpression", "AT_SetExpression"),
        *("AT_AttachPartition", "AT_DetachPartition", "AT_AddInherit", "AT_DropInherit", "AT_AddOf", "AT_DropOf"),
        *("AT_EnableTrig", "AT_EnableAlwaysTrig", "AT_EnableReplicaTrig", "AT_DisableTrig"),
        *("AT_EnableTrigAll", "AT_DisableTrigAll", "AT_EnableTrigUser", "AT_DisableTrigUser"),
        *("AT_EnableRule", "AT_EnableAlwaysRule", "AT_EnableReplicaRule", "AT_DisableRule"),
        *("AT_EnableRowSecurity", "AT_DisableRowSecurity", "AT_ForceRowSecurity", "AT_NoForceRowSecurity"),
        *("AT_ReplicaIdentity", "AT_SetLogged", "AT_SetUnLogged"),
    }
)


def _alter_table(node: Node, text: str) -> Sorted:
    commands = [cast(Node, command["AlterTableCmd"]) for command in node.get("cmds", ())]
    kind = f"ALTER {_object(node.get('objtype'))}"
    if all(command.get("subtype", "AT_AddColumn") not in _ALTERS for command in commands):
        if commands and commands[0].get("subtype") == "AT_ChangeOwner":
            return _needless(f"{kind} … OWNER TO")
        return _needless(f"{kind} (storage)")
    for command in commands:
        definition = command.get("def", {})
        partition = definition.get("PartitionCmd", {})
        if not _constant_bound(partition.get("bound")):
            return _refused(f"{kind} … ATTACH PARTITION", "its partition bound would be computed by a function")
        if partition.get("concurrent"):
            return _refused(f"{kind} … DETACH PARTITION CONCURRENTLY", "it needs more than one transaction")
    return _run(kind, text)


def _object(kind: str | None) -> str:
    """``OBJECT_MATVIEW`` in the words of SQL."""
    words = (kind or "OBJECT_TABLE").removeprefix("OBJECT_").replace("_", " ")
    return {"MATVIEW": "MATERIALIZED VIEW"}.get(words, re.sub(r"^TS(?=[A-Z])", "TEXT SEARCH ", words))


# Functions and triggers ----------------------------------------------------------------------------------------------


def _function(node: Node, text: str) -> Sorted:
    kind = "CREATE PROCEDURE" if node.get("is_procedure") else "CREATE FUNCTION"
    options = {option["defname"]: option for option in _options(node)}
    language = _string(options["language"]["arg"]).lower() if "language" in options else "sql"
    fires = "trigger" in _strings(node.get("returnType", {}).get("names", ()))[-1:]
    if _flag(options.get("leakproof")):
        return _again(text, lambda text: _without(text, "leakproof"), kind)
    if "support" in options:
        return _refused(kind, "it has a planner support function")
    if language in ("c", "internal"):
        if "as" not in options:
            return _refused(kind, "it has no body")
        parts = [_string(item) for item in _items(options["as"]["arg"])]
        stubbed = _stub(text, options["language"].get("location", 0), options["as"].get("location", 0), parts)
        if _language_of(stubbed) != STUB_C:
            return _refused(kind, "its language cannot be left out")
        return _run(kind, stubbed, language=STUB_C, returns_trigger=fires)
    return _run(kind, text, language=language, returns_trigger=fires)


def _flag(option: Node | None) -> bool:
    return option is not None and bool(option.get("arg", {}).get("Boolean", {}).get("boolval", False))


def _stub(text: str, language: int, body: int, parts: Sequence[str]) -> str:
    """The same function as text of a language that nobody runs: C cannot be loaded, its name can be kept."""
    name = _tokens_after(text, language)[0]
    literals = [token for token in _tokens_after(text, body) if token.kind == "string" or token.text == ","]
    last = literals[2] if len(parts) > 1 and len(literals) > 2 else literals[0]
    symbol = "'" + parts[-1].replace("'", "''") + "'"
    changes = sorted([(name.start, name.end, f'"{STUB_C}"'), (literals[0].start, last.end, symbol)], reverse=True)
    for start, end, new in changes:
        text = text[:start] + new + text[end:]
    return text


def _tokens_after(text: str, byte_offset: int) -> list[Token]:
    """Some tokens behind the one that stands at an offset of the parser's."""
    found: list[Token] = []
    for token in tokens(text, character_offset(text, byte_offset)):
        found.append(token)
        if len(found) == 5:
            break
    return found[1:]


def _language_of(text: str) -> str:
    parsed = _parse(text)
    node = parsed[0]["stmt"].get("CreateFunctionStmt") if len(parsed) == 1 else None
    named = [option for option in _options(node or {}) if option["defname"] == "language"]
    return _string(named[0]["arg"]) if named else ""


def _trigger(node: Node, text: str) -> Sorted:
    return _run("CREATE TRIGGER", text, names=_strings(node.get("funcname", ())))


# Types ---------------------------------------------------------------------------------------------------------------


def _domain(node: Node, text: str) -> Sorted:
    checks = [constraint["Constraint"].get("raw_expr", {}) for constraint in node.get("constraints", ())]
    return _run("CREATE DOMAIN", text, calls=tuple(_calls(checks)))


def _alter_domain(node: Node, text: str) -> Sorted:
    return _run("ALTER DOMAIN", text, calls=tuple(_calls(node.get("def", {}))))


def _calls(tree: Any) -> Iterator[str]:
    """The names of all functions that an expression calls; one of another schema than the server's with its schema."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += cast("list[Any]", node)
        elif isinstance(node, dict):
            branch = cast(Node, node)
            if "FuncCall" in branch:
                names = [name for name in _strings(branch["FuncCall"]["funcname"]) if name != "pg_catalog"]
                yield ".".join(names)
            for notation, field in (("A_Indirection", "indirection"), ("ColumnRef", "fields")):
                yield from _strings(branch.get(notation, {}).get(field, ()))[-1:]  # (value).f may mean f(value)
            waiting += branch.values()


def _define(node: Node, text: str) -> Sorted:
    kind = f"CREATE {_object(node.get('kind'))}"
    options = {option["defname"]: option for option in _options(node, "definition")}
    named = (_strings(options[name].get("arg", {}).get("TypeName", {}).get("names", ())) for name in options)
    needs = tuple(names[-1] for name, names in zip(options, named, strict=True) if name in _FUNCTIONS_OF and names)
    match node.get("kind"):
        case "OBJECT_AGGREGATE":
            if "initcond" in options or "minitcond" in options:
                state = options.get("stype", {}).get("arg", {}).get("TypeName", {})
                names = _strings(state.get("names", ()))
                if names[:-1] not in ((), ("pg_catalog",)) or not _PLAIN_TYPES.intersection(names[-1:]):
                    return _refused(kind, "its first state would be computed")
            return _run(kind, text, needs=needs)
        case "OBJECT_OPERATOR":
            return _run(kind, text, needs=needs)
        case "OBJECT_TYPE" if not options:
            return _needless("CREATE TYPE (shell)")
        case "OBJECT_TYPE":
            return _refused("CREATE TYPE (base)", "its input function would be code")
        case "OBJECT_COLLATION" | "OBJECT_TSCONFIGURATION" | "OBJECT_TSDICTIONARY":
            return _run(kind, text)
        case _:
            return _refused(kind)


_FUNCTIONS_OF = (
    *("sfunc", "finalfunc", "combinefunc", "serialfunc", "deserialfunc", "msfunc", "minvfunc", "mfinalfunc"),
    *("procedure", "function"),
)
_PLAIN_TYPES = frozenset(
    {
        *("int2", "int4", "int8", "numeric", "float4", "float8", "text", "varchar", "bool", "json", "jsonb", "bytea"),
        *("timestamp", "timestamptz", "date", "time", "interval", "uuid", "internal"),
    }
)


def _range(node: Node, text: str) -> Sorted:
    return _run("CREATE TYPE", text, needs=tuple(_calls_of_range(node)))


def _calls_of_range(node: Node) -> Iterator[str]:
    for option in _options(node, "params"):
        if option["defname"] in ("subtype_diff", "canonical"):
            names = _strings(option.get("arg", {}).get("TypeName", {}).get("names", ()))
            yield from names[-1:]


# Names and settings --------------------------------------------------------------------------------------------------


def _schema(node: Node, text: str) -> Sorted:
    if node.get("schemaElts"):
        return _refused("CREATE SCHEMA", "it defines more than the schema: its parts need statements of their own")
    name = node.get("schemaname") or node.get("authrole", {}).get("rolename", "")
    return Sorted(deed=Deed.SCHEMA, kind="CREATE SCHEMA", names=(name,))


def _extension(node: Node, text: str) -> Sorted:
    options = {option["defname"]: option for option in _options(node)}
    schema = _string(options["schema"]["arg"]) if "schema" in options else ""
    return Sorted(deed=Deed.EXTENSION, kind="CREATE EXTENSION", names=(node["extname"], schema))


def _language(node: Node, text: str) -> Sorted:
    return Sorted(deed=Deed.LANGUAGE, kind="CREATE LANGUAGE", names=(node["plname"].lower(),))


def _server(node: Node, text: str) -> Sorted:
    return Sorted(deed=Deed.SERVER, kind="CREATE SERVER", names=(node["servername"],))


def _role(node: Node, text: str) -> Sorted:
    return Sorted(deed=Deed.ROLE, kind="CREATE ROLE", names=(node["role"],))


def _set(node: Node, text: str) -> Sorted:
    name = node.get("name", "").lower()
    if name == "search_path":
        values = [_string(value) for value in node["args"]] if node.get("args") else ["public"]
        return Sorted(deed=Deed.PATH, kind="SET search_path", names=_path(values))
    if name in _HARMLESS_SETTINGS:
        return _needless("SET")
    kind = {"session_authorization": "SET SESSION AUTHORIZATION", "role": "SET ROLE"}.get(name, f"SET {name}")
    return _refused(kind, "settings of the session are the scan's own") if name else _needless("SET")


_HARMLESS_SETTINGS = frozenset(
    {
        *("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"),
        *("client_encoding", "standard_conforming_strings", "check_function_bodies", "xmloption", "row_security"),
        *("client_min_messages", "default_tablespace", "default_table_access_method", "default_with_oids"),
        *("escape_string_warning", "default_toast_compression", "timezone", "datestyle", "extra_float_digits"),
        *("synchronize_seqscans", "intervalstyle", "quote_all_identifiers", "bytea_output", "backslash_quote"),
    }
)


def _path(values: Sequence[str]) -> tuple[str, ...]:
    """Schemas to look in. The server's own always come first here, so that no name of the dump hides one of its."""
    return tuple(value for value in values if value and value not in ("pg_catalog", "pg_temp", "$user"))


def _select(node: Node, text: str) -> Sorted:
    """pg_dump's own: set_config('search_path', …, false) and setval(…)."""
    targets = node.get("targetList", ())
    alone = not (set(node) - {"targetList", "limitOption", "op"})
    call = targets[0]["ResTarget"].get("val", {}).get("FuncCall") if alone and len(targets) == 1 else None
    if call is not None:
        name = _strings(call["funcname"])[-1]
        arguments = [_string(argument) if "A_Const" in argument else None for argument in call.get("args", ())]
        if name == "set_config" and len(arguments) == 3 and arguments[0] == "search_path":
            if isinstance(arguments[1], str):
                listed = [unquote(token.text) for token in tokens(arguments[1]) if token.kind in ("word", "quoted")]
                return Sorted(deed=Deed.PATH, kind="SET search_path", names=_path(listed))
        elif name == "setval":
            return _needless("SELECT setval")
    return _refused("SELECT", "it would run functions")


def _alter_database(node: Node, text: str) -> Sorted:
    setting = node.get("setstmt", {})
    if setting.get("name") == "search_path" and setting.get("args"):
        values = [_string(value) for value in setting["args"]]
        return Sorted(deed=Deed.DATABASE_PATH, kind="ALTER DATABASE … SET search_path", names=_path(values))
    return _needless("ALTER DATABASE")


def _comment(node: Node, text: str) -> Sorted:
    if node.get("objtype") == "OBJECT_TRIGGER":
        return _run("COMMENT ON TRIGGER", text)
    return _needless("COMMENT")


_DROPPABLE = frozenset(
    {
        *("OBJECT_TABLE", "OBJECT_VIEW", "OBJECT_MATVIEW", "OBJECT_INDEX", "OBJECT_SEQUENCE", "OBJECT_FUNCTION"),
        *("OBJECT_PROCEDURE", "OBJECT_ROUTINE", "OBJECT_TRIGGER", "OBJECT_TYPE", "OBJECT_DOMAIN", "OBJECT_RULE"),
        *("OBJECT_POLICY", "OBJECT_AGGREGATE", "OBJECT_OPERATOR", "OBJECT_CAST", "OBJECT_FOREIGN_TABLE"),
        *("OBJECT_PUBLICATION", "OBJECT_COLLATION", "OBJECT_TSCONFIGURATION", "OBJECT_TSDICTIONARY"),
    }
)


def _drop(node: Node, text: str) -> Sorted:
    kind = f"DROP {_object(node.get('removeType'))}"
    if node.get("concurrent"):
        return _needless(f"{kind} CONCURRENTLY")
    if node.get("removeType") in _DROPPABLE:
        return _run(kind, text)
    # pg_dump --clean begins with these, IF EXISTS, for a database that is not empty; this one is.
    return _needless(kind) if node.get("missing_ok") else _refused(kind)


# Words that must go --------------------------------------------------------------------------------------------------


def _again(text: str, change: Callable[[str], str], kind: str) -> Sorted:
    """Sort the statement without the words that stood in the way; refused where they are still there."""
    changed = change(text)
    return _sort(changed) if changed != text else _refused(kind, "a part of it cannot be left out")


def _without(text: str, word: str) -> str:
    for token in tokens(text):
        if token.kind == "word" and token.text.lower() == word:
            return text[: token.start] + text[token.end :]
    return text


def _without_storage(text: str) -> str:
    """Without TABLESPACE name and USING method, the first of either that stands outside of brackets."""
    depth = 0
    before: Token | None = None
    for token in tokens(text):
        if token.kind == "other" and token.text in "()":
            depth += 1 if token.text == "(" else -1
        if before is not None and token.kind in ("word", "quoted"):
            return text[: before.start] + text[token.end :]
        word = token.text.lower() if token.kind == "word" and depth == 0 else ""
        before = token if word in ("tablespace", "using") else None
        if word == "as":
            break
    return text


def _without_data(text: str) -> str:
    words = list(tokens(text))[-2:]
    if [token.text.lower() for token in words] == ["with", "data"]:
        text = text[: words[0].start]
    return f"{text}\nwith no data"


def _older_words(text: str) -> str:
    """What PostgreSQL 18 says and the parser does not know yet, in words that it knows, or left out."""
    listed = list(tokens(text))
    words = [token.text.lower() if token.kind == "word" else "" for token in listed]
    changes: list[tuple[int, int, str]] = []
    for place, word in enumerate(words):
        after = words[place + 1] if place + 1 < len(words) else ""
        if (word, after) in (("not", "enforced"), ("without", "overlaps")):
            changes.append((listed[place].start, listed[place + 1].end, ""))
        elif word == "period" and after and words[place - 1] != ".":
            changes.append((listed[place].start, listed[place].end, ""))
    for place in range(len(listed) - 3):
        if words[place : place + 3] == ["generated", "always", "as"]:
            closing = _closing(listed, place + 3)
            if closing is not None:
                following = words[closing + 1] if closing + 1 < len(words) else ""
                if following == "virtual":
                    changes.append((listed[closing + 1].start, listed[closing + 1].end, "stored"))
                elif following != "stored":
                    changes.append((listed[closing].end, listed[closing].end, " stored"))
    for start, end, new in sorted(changes, reverse=True):
        text = text[:start] + new + text[end:]
    return text


# A table's bare form ------------------------------------------------------------------------------------------------

_COLUMN_ENDS = frozenset(
    {
        *("constraint", "not", "null", "default", "generated", "primary", "unique", "references", "check", "collate"),
        *("storage", "compression", "deferrable", "initially"),
    }
)
_ELEMENTS = frozenset({"constraint", "primary", "unique", "check", "foreign", "exclude", "like", "not"})


def bare(text: str) -> str:
    """A CREATE TABLE with its columns, their types and the primary key; an ADD CONSTRAINT that checks nothing yet.

    An ADD COLUMN without what it would fill the column with. Other texts stay as they are.
    """
    listed = list(tokens(text))
    words = [token.text.lower() if token.kind == "word" else token.text for token in listed]
    if words[:2] == ["alter", "table"]:
        if "constraint" in words or "check" in words or "foreign" in words:
            return f"{text}\nnot valid"
        place = next((index for index, word in enumerate(words) if word == "add"), len(words))
        place += 1 if words[place + 1 : place + 2] == ["column"] else 0
        place += 3 if words[place + 1 : place + 4] == ["if", "not", "exists"] else 0
        if place + 1 >= len(listed):
            return text
        column, _ = items(text, listed[place + 1].start)
        return text[: listed[place + 1].start] + _bare_column(column[0])
    opening = next((index for index, word in enumerate(words) if word == "("), None)
    if words[:1] != ["create"] or opening is None or _closing(listed, opening) is None:
        return text
    end = listed[_closing(listed, opening) or opening].start
    elements, _ = items(text, listed[opening].end)
    kept = [made for element in elements if (made := _bare_element(element))]
    return text[: listed[opening].end] + ", ".join(kept) + text[end:]


def _bare_element(element: str) -> str:
    listed = list(tokens(element))
    words = [token.text.lower() if token.kind == "word" else "" for token in listed]
    if words[0] not in _ELEMENTS:
        return _bare_column(element)
    start = 2 if words[0] == "constraint" else 0
    return element if words[start : start + 2] == ["primary", "key"] else ""


def _bare_column(element: str) -> str:
    """The column's name and type, NOT NULL and PRIMARY KEY where it says so."""
    listed = list(tokens(element))
    words = [token.text.lower() if token.kind == "word" else "" for token in listed]
    ends = next((index for index, word in enumerate(words) if index > 1 and word in _COLUMN_ENDS), len(listed))
    pairs = list(pairwise(words))
    not_null = " not null" if ("not", "null") in pairs else ""
    key = " primary key" if ("primary", "key") in pairs else ""
    return element[: listed[ends - 1].end].strip() + not_null + key


def _closing(listed: Sequence[Token], place: int) -> int | None:
    """The token that closes the bracket which opens at this one."""
    depth = 0
    for index in range(place, len(listed)):
        if listed[index].kind == "other":
            depth += {"(": 1, ")": -1}.get(listed[index].text, 0)
            if depth == 0:
                return index
    return None


# Trees ---------------------------------------------------------------------------------------------------------------


def _options(node: Node, field: str = "options") -> list[Node]:
    return [item["DefElem"] for item in node.get(field, ()) if "DefElem" in item]


def _items(node: Node) -> list[Node]:
    return node["List"]["items"] if "List" in node else [node]


def _strings(nodes: Sequence[Node]) -> tuple[str, ...]:
    return tuple(node["String"]["sval"] for node in nodes if "String" in node)


def _string(node: Node) -> str:
    """The text of a literal or a name; empty for anything else."""
    if "String" in node:
        return node["String"].get("sval", "")
    constant = node.get("A_Const", {})
    return constant.get("sval", {}).get("sval", "") if "sval" in constant else ""


def _as(kind: str) -> Callable[[Node, str], Sorted]:
    return lambda node, text: _run(kind, text)


def _spared(kind: str) -> Callable[[Node, str], Sorted]:
    return lambda node, text: _needless(kind)


_SORTS: dict[str, Callable[[Node, str], Sorted]] = {
    "CreateStmt": _table,
    "CreateForeignTableStmt": _foreign_table,
    "CreateTableAsStmt": _table_as,
    "ViewStmt": _view,
    "IndexStmt": _index,
    "CreateSeqStmt": _sequence,
    "AlterSeqStmt": _as("ALTER SEQUENCE"),
    "AlterTableStmt": _alter_table,
    "CreateFunctionStmt": _function,
    "AlterFunctionStmt": _as("ALTER FUNCTION"),
    "CreateTrigStmt": _trigger,
    "CreateDomainStmt": _domain,
    "AlterDomainStmt": _alter_domain,
    "CompositeTypeStmt": _as("CREATE TYPE"),
    "CreateEnumStmt": _as("CREATE TYPE"),
    "AlterEnumStmt": _as("ALTER TYPE"),
    "CreateRangeStmt": _range,
    "DefineStmt": _define,
    "AlterTSConfigurationStmt": _as("ALTER TEXT SEARCH CONFIGURATION"),
    "CreateCastStmt": _as("CREATE CAST"),
    "CreatePolicyStmt": _as("CREATE POLICY"),
    "AlterPolicyStmt": _as("ALTER POLICY"),
    "RuleStmt": _as("CREATE RULE"),
    "CreatePublicationStmt": _as("CREATE PUBLICATION"),
    "AlterPublicationStmt": _as("ALTER PUBLICATION"),
    "RenameStmt": _as("ALTER … RENAME"),
    "AlterObjectSchemaStmt": _as("ALTER … SET SCHEMA"),
    "DropStmt": _drop,
    "CreateSchemaStmt": _schema,
    "CreateExtensionStmt": _extension,
    "CreatePLangStmt": _language,
    "CreateForeignServerStmt": _server,
    "CreateRoleStmt": _role,
    "VariableSetStmt": _set,
    "SelectStmt": _select,
    "AlterDatabaseSetStmt": _alter_database,
    "CommentStmt": _comment,
    "TransactionStmt": _spared("transaction"),
    "GrantStmt": _spared("GRANT"),
    "GrantRoleStmt": _spared("GRANT"),
    "AlterDefaultPrivilegesStmt": _spared("ALTER DEFAULT PRIVILEGES"),
    "AlterOwnerStmt": _spared("ALTER … OWNER TO"),
    "AlterRoleStmt": _spared("ALTER ROLE"),
    "AlterRoleSetStmt": _spared("ALTER ROLE"),
    "AlterDatabaseStmt": _spared("ALTER DATABASE"),
    "CreatedbStmt": _spared("CREATE DATABASE"),
    "CreateStatsStmt": _spared("CREATE STATISTICS"),
    "AlterStatsStmt": _spared("ALTER STATISTICS"),
    "AlterObjectDependsStmt": _spared("ALTER … DEPENDS ON EXTENSION"),
    "SecLabelStmt": _spared("SECURITY LABEL"),
}
