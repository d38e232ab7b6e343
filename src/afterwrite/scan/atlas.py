"""Finding what a name means: tables and functions of an inventory, looked for along a search path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from afterwrite.scan.catalog import Function, Inventory, Kind, Table, Trigger
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
        self._aggregates = {name.rpartition(".")[2] for name in inventory.aggregates}

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

    def is_aggregate(self, name: str) -> bool:
        return name in self._aggregates

    def search_path(self, config: Sequence[str]) -> tuple[str, ...]:
        """Where a function looks for unqualified names: its own SET search_path, else the database's."""
        for setting in config:
            key, _, value = setting.partition("=")
            if key.strip().lower() == "search_path":
                return tuple(name for name in split_names(value) if name and name != "$user")
        return self.inventory.search_path
