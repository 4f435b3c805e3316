"""What applying the configuration file changes: a plan from what the file says, what it said, and what is stored."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Mapping as Lookup

    from server.core.mapping import Mapping
    from server.store.stored import StoredMapping


@dataclass(slots=True)
class FilePlan:
    """What to do, by name of mapping; nothing in it has happened yet.

    `digests` are to be remembered, `forgotten` not any more. A skipped entry is in neither, so the next start tries
    it again. `specs` are the mappings to create and to replace, as they shall be.
    """

    specs: dict[str, Mapping] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    paused: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    forgotten: list[str] = field(default_factory=list)


def plan_file(
    entries: Sequence[tuple[Mapping, str]],
    *,
    stored: Lookup[str, StoredMapping],
    digests: Lookup[str, str],
    client_id_of: Callable[[Mapping], str],
    prune: bool,
) -> FilePlan:
    """Decide what to do with the file's `entries`, each with its digest.

    `stored` and `digests` are the mappings there are, and what the file said last time, by name.

    Raises:
        ValueError: two entries have the same name.
    """
    names = [spec.name for spec, _ in entries]
    if len(set(names)) < len(names):
        raise ValueError("two entries of the configuration file have the same name")
    plan = FilePlan()
    _plan_removed(plan, set(names), stored=stored, digests=digests, prune=prune)
    for spec, digest in entries:
        _plan_entry(plan, spec, digest, found=stored.get(spec.name), remembered=digests.get(spec.name))
    _skip_taken_client_ids(plan, stored, client_id_of)
    plan.created = [name for name in plan.specs if name not in stored]
    plan.replaced = [name for name in plan.specs if name in stored]
    return plan


def _plan_removed(
    plan: FilePlan, names: set[str], *, stored: Lookup[str, StoredMapping], digests: Lookup[str, str], prune: bool
) -> None:
    removed = sorted(set(digests) - names)
    if not names:
        kept = ", ".join(repr(name) for name in sorted(stored) if stored[name].origin == "file")
        plan.warnings.append(
            "the configuration file has no forwarding entries, so nothing was deleted; mappings that came from it: "
            + (kept or "none")
        )
        return
    for name in removed:
        # Forgotten also if it is only paused: whoever resumes it then has taken it over from the file.
        plan.forgotten.append(name)
        found = stored.get(name)
        if found is None or found.origin != "file":
            continue
        if prune:
            plan.deleted.append(name)
        elif not found.spec.paused:
            plan.paused.append(name)


def _plan_entry(
    plan: FilePlan, spec: Mapping, digest: str, *, found: StoredMapping | None, remembered: str | None
) -> None:
    name = spec.name
    if digest == remembered:
        plan.unchanged.append(name)
    elif found is None:
        plan.specs[name] = spec
        plan.digests[name] = digest
    elif found.origin != "file":
        plan.skipped.append(name)
        plan.warnings.append(
            f"the entry {name!r} of the configuration file was skipped: the API made a mapping of this name;"
            " rename one of them, or delete the mapping"
        )
    else:
        if remembered is None and found.spec.paused and not spec.paused:
            plan.warnings.append(
                f"the mapping {name!r} is in the configuration file again and is still paused;"
                " resume it through the API"
            )
        wanted = spec.model_copy(update={"paused": found.spec.paused})
        plan.digests[name] = digest
        if wanted == found.spec:
            plan.unchanged.append(name)
        else:
            plan.specs[name] = wanted


def _skip_taken_client_ids(
    plan: FilePlan, stored: Lookup[str, StoredMapping], client_id_of: Callable[[Mapping], str]
) -> None:
    """Take entries out of `plan` until no two mappings would have the same client id.

    One that is taken out keeps its old client id, which may be what another wanted, so this goes on until all fit.
    """
    remaining = {name: each.spec for name, each in stored.items() if name not in plan.deleted}
    while True:
        owners: dict[str, list[str]] = defaultdict(list)
        # Those the file does not change come first: what runs already keeps its client id.
        for name, spec in {**{n: s for n, s in remaining.items() if n not in plan.specs}, **plan.specs}.items():
            if client_id := client_id_of(spec):
                owners[client_id].append(name)
        losers = {
            name: (client_id, taken_by)
            for client_id, (taken_by, *others) in owners.items()
            for name in others
            if name in plan.specs
        }
        if not losers:
            break
        for name, (client_id, taken_by) in losers.items():
            del plan.specs[name], plan.digests[name]
            plan.skipped.append(name)
            plan.warnings.append(
                f"the entry {name!r} of the configuration file was skipped: its MQTT client id {client_id!r} is"
                f" the mapping {taken_by!r}'s; set another mqtt.client_id"
            )
    for client_id, (first, *others) in owners.items():
        # Stored ones can only clash after mqtt.client_id, the base of all, was changed.
        plan.warnings.extend(
            f"the mappings {first!r} and {other!r} now have the same MQTT client id {client_id!r};"
            " set another mqtt.client_id for one of them"
            for other in others
        )
