"""``afterwrite serve`` and ``afterwrite key``: refused where it would be open, ended by Ctrl-C, keys shown once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

from typed import typed


def test_keys_are_made_listed_and_revoked(installed_dsn: str) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return typed(*words, "--dsn", installed_dsn, env={**os.environ, "COLUMNS": "100"})

    made = run("key", "create", "dashboard", "--scope", "read,ingest", "--tenant", "acme", "--expires", "90d")
    assert made.returncode == 0
    assert made.stdout.startswith("aw_")
    assert "tenant acme's activity alone" in made.stderr
    listed = json.loads(run("key", "list", "--json").stdout)["keys"]
    assert [(key["name"], key["scopes"], key["tenant_id"]) for key in listed] == [
        ("dashboard", ["ingest", "read"], "acme")
    ]
    assert made.stdout.split("_", 2)[2].strip() not in run("key", "list").stdout
    assert run("key", "create", "dashboard").returncode == 2
    assert run("key", "create", "x", "--scope", "everything").returncode == 2
    assert run("key", "create", "x", "--expires", "soon").returncode == 2
    assert run("key", "revoke", "dashboard").returncode == 0
    assert "revoked" in run("key", "list").stdout
    assert run("key", "revoke", "dashboard").returncode == 2


def test_it_is_not_served_where_it_would_be_open_and_says_how(dsn: str, installed_dsn: str) -> None:
    refused = typed("serve", "--dsn", installed_dsn, "--host", "0.0.0.0", "--port", "0", env=dict(os.environ))
    assert refused.returncode == 5
    assert "afterwrite key create" in refused.stderr
    missing = typed("serve", "--dsn", dsn, env=dict(os.environ))
    assert "afterwrite install --apply" in missing.stderr


def test_it_serves_until_it_is_told_to_stop_also_with_a_stream_open(installed_dsn: str) -> None:
    words = [sys.executable, "-m", "afterwrite", "serve", "--dsn", installed_dsn, "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True) as child:
        try:
            assert child.stderr is not None
            url = child.stderr.readline().split()[2].rstrip(",")
            with urllib.request.urlopen(f"{url}v1/feed") as stream:
                assert stream.status == 200
                os.killpg(child.pid, signal.SIGINT)
                assert child.wait(15) == 0
            assert child.stderr.read() == ""
        finally:
            child.kill()
