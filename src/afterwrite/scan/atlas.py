"""Finding what a name means: tables and functions of an inventory, looked for along a search path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from afterwrite.scan.catalog import (
    Check,
    Domain,
    Function,
    Inventory,
    Kind,
    Policy,
    RewriteRule,
    Table,
    Trigger,
    Unique,
)
from afterwrite.scan.tokens import split_names

SYSTEM_SCHEMAS = ("pg_catalog", "information_schema", "pg_toast")


class Atlas:
    """An inventory with its indexes."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.tables = {table.oid: table for table in inventory.tables}
        self.functions = {function.oid: function for function in inventory.functions}
        self._named_tables: defaultdict[str, list[Table]] = defaultdict(list)
        self._named_functions: defaultdict[str, list[Function]] = defaultdict(list)
        self._leaves: defaultdict[int, list[Table]] = defaultdict(list)
        for table in inventory.tables:
            self._named_tables[table.name].append(table)
            if table.partition_of is not None:
                self._leaves[table.partition_of].append(table)
        for function in inventory.functions:
            self._named_functions[function.name].append(function)
        self._triggers: defaultdict[int, list[Trigger]] = defaultdict(list)
        for trigger in inventory.triggers:
            self._triggers[trigger.table_oid].append(trigger)
        self._aggregates: defaultdict[str, list[Function]] = defaultdict(list)
        for aggregate in inventory.aggregates:
            parts = [self.functions[oid] for oid in aggregate.functions if oid in self.functions]
            self._aggregates[aggregate.name] += parts
        self.operators: defaultdict[str, list[Function]] = defaultdict(list)
        for operator in inventory.operators:
            if operator.function_oid in self.functions:
                self.operators[operator.name].append(self.functions[operator.function_oid])
        self._domains: defaultdict[str, list[Domain]] = defaultdict(list)
        for domain in inventory.domains:
            self._domains[domain.short].append(domain)
        self.domains = {domain.name: domain for domain in inventory.domains}
        self._heirs: defaultdict[int, list[Table]] = defaultdict(list)
        for child, parent in inventory.inherits:
            if child in self.tables:
                self._heirs[parent].append(self.tables[child])
        self.rules: defaultdict[int, list[RewriteRule]] = defaultdict(list)
        for rule in inventory.rules:
            self.rules[rule.table_oid].append(rule)
        self.policies: defaultdict[int, list[Policy]] = defaultdict(list)
        for policy in inventory.policies:
            self.policies[policy.table_oid].append(policy)

    def table_of(self, trigger: Trigger) -> Table | None:
        """The table that a trigger is on."""
        return self.tables.get(trigger.table_oid)

    def find_table(self, schema: str | None, name: str, path: Sequence[str], near: str = "") -> Table | None:
        """The table of a name: in its schema, along the path, in the schema ``near``, or the only one so called."""
        named = self._named_tables.get(name, [])
        if schema is not None:
            return next((table for table in named if table.schema == schema), None)
        for place in (*path, near):
            for table in named:
                if table.schema == place:
                    return table
        return named[0] if len(named) == 1 else None

    def are_twins(self, one: Table, other: Table) -> bool:
        """Whether two tables are alike in all that a verdict looks at, as those of two tenants are."""
        return self._likeness(one) == self._likeness(other)

    def _likeness(self, table: Table) -> tuple[object, ...]:
        triggers = sorted((each.name, each.function) for each in self._triggers[table.oid])
        checks = sorted(check.name for check in table.checks)
        return (table.kind, tuple(column.name for column in table.columns), checks, len(table.uniques), triggers)

    def root(self, table: Table) -> Table:
        """The partitioned table at the top of a partition, or the table itself."""
        while table.partition_of is not None and table.partition_of in self.tables:
            table = self.tables[table.partition_of]
        return table

    def leaves(self, table: Table) -> list[Table]:
        """The partitions at the bottom of a partitioned table; the table itself when it is none."""
        if table.kind is not Kind.PARTITIONED:
            return [table]
        return [leaf for child in self._leaves[table.oid] for leaf in self.leaves(child)]

    def uniques(self, table: Table) -> list[Unique]:
        """A table's unique indexes, and those that only its partitions have."""
        own = {(each.columns, each.expressions) for each in table.uniques}
        below = {
            (each.columns, each.expressions): each
            for leaf in self.leaves(table)
            for each in leaf.uniques
            if (each.columns, each.expressions) not in own
        }
        return [*table.uniques, *below.values()]

    def takes_every_row(self, table: Table) -> bool:
        """Whether a partitioned table has a partition for whatever comes."""
        return any(each.partition_bound == "DEFAULT" for each in self._leaves[table.oid])

    def heirs(self, table: Table) -> list[Table]:
        """The tables that inherit from it, at any depth: what is done to its rows is done to theirs."""
        found: dict[int, Table] = {}
        waiting = [table]
        while waiting:
            for child in self._heirs[waiting.pop().oid]:
                if child.oid not in found:
                    found[child.oid] = child
                    waiting.append(child)
        return list(found.values())

    def find_domains(self, schema: str | None, name: str) -> list[Domain]:
        """The domains that a type's name may mean."""
        return [domain for domain in self._domains.get(name, ()) if schema in (None, domain.schema)]

    def domain_line(self, name: str) -> list[Domain]:
        """The domain of this name (as format_type() prints it) and those that it is made of; empty for other types."""
        found: list[Domain] = []
        domain = self.domains.get(name.removesuffix("[]"))
        while domain is not None and domain not in found:
            found.append(domain)
            domain = self.domains.get(domain.base.partition("(")[0])
        return found

    def checks(self, table: Table) -> list[Check]:
        """A table's CHECK constraints with those of its partitions, and those of its columns' domains."""
        found = list(
            {(each.name, each.definition): each for leaf in self.leaves(table) for each in leaf.checks}.values()
        )
        found += [each for each in table.checks if each not in found]
        for column in table.columns:
            for domain in self.domain_line(column.type):
                for name, text in zip(domain.constraints, domain.checks, strict=True):
                    found.append(Check(name=name, columns=(column.name,), definition=text, expression=condition(text)))
        return found

    def find_functions(self, schema: str | None, name: str, count: int, path: Sequence[str]) -> list[Function]:
        """The functions that a call may mean: overloads that take so many arguments (all, when none does)."""
        named = self._named_functions.get(name, [])
        if schema is not None:
            named = [function for function in named if function.schema == schema]
        else:
            on_path = [function for function in named if function.schema in path]
            named = on_path or named
        fitting = [
            function
            for function in named
            if function.variadic or function.required_arguments <= count <= function.argument_count
        ]
        return fitting or named

    def is_builtin(self, schema: str | None, name: str) -> bool:
        """Whether pg_catalog has a function of this name."""
        return schema in (None, "pg_catalog") and name in self.inventory.builtins

    def is_volatile_builtin(self, name: str) -> bool:
        return self.inventory.builtins.get(name, True)

    def aggregate_parts(self, name: str) -> list[Function] | None:
        """The functions that people's aggregates of a name run; None when there is no such aggregate."""
        return self._aggregates.get(name)

    def search_path(self, config: Sequence[str]) -> tuple[str, ...]:
        """Where a function looks for unqualified names: its own SET search_path, else the database's."""
        own = fixed_path(config)
        return self.inventory.search_path if own is None else own


def fixed_path(config: Sequence[str]) -> tuple[str, ...] | None:
    """The search path that a function sets for itself; None when it has its caller's."""
    for setting in config:
        key, _, value = setting.partition("=")
        if key.strip().lower() == "search_path":
            return tuple(name for name in split_names(value) if name and name != "$user")
    return None


def condition(constraint: str) -> str:
    """The condition of a CHECK as pg_get_constraintdef() prints it."""
    inner = constraint.strip().removeprefix("CHECK").strip()
    for suffix in ("NOT VALID", "NO INHERIT", "NOT ENFORCED"):
        inner = inner.removesuffix(suffix).strip()
    return inner
