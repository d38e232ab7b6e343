-- Who decodes the WAL beside the counters, since decoding is counted as rolling back; and a migration that is paused.

alter table afterwrite.pulse add column decoders text[];
comment on column afterwrite.pulse.decoders is
    'The logical slots of this database, each with who reads it or how much was read of it. Whoever ends reading is counted as having rolled back each transaction that it read.';

alter table afterwrite.ledger drop constraint ledger_action;
alter table afterwrite.ledger add constraint ledger_action check (action in (
    'migration.start', 'migration.plan', 'migration.pause', 'migration.resume', 'migration.finish',
    'phase.soaked', 'phase.halted',
    'trigger.backup', 'trigger.silence', 'trigger.remove', 'trigger.restore', 'trigger.left',
    'function.remove', 'function.restore',
    'legacy.backfill', 'backup.rehearsed', 'drift.seen', 'drift.over',
    'replica_identity.set', 'replica_identity.restore'));
comment on constraint ledger_action on afterwrite.ledger is 'Only deeds that are known can be told.';
