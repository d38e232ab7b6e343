"""``afterwrite prove``: what the triggers logged against what was captured, and what a phase still lacks."""

from __future__ import annotations

from afterwrite.cli.face import Dsn, Json, emit, out, run, settings
from afterwrite.errors import ExitCode
from afterwrite.postgres import connect
from afterwrite.prove.report import read_proof, to_json
from afterwrite.settings import Settings


def prove(dsn: Dsn = None, json: Json = False) -> int:
    """Show the proof: transactions compared, residuals with reasons and examples, and what was not seen firing yet.

    Exit 3 while a residual is unexplained.
    """
    return run(_prove(settings(dsn), json=json))


async def _prove(given: Settings, *, json: bool) -> int:
    async with connect(given.dsn) as database:
        proof = await read_proof(database)
    if json:
        emit(to_json(proof))
    else:
        out.print(proof)
    return ExitCode.GATE if proof.unexplained else ExitCode.OK
