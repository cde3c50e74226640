"""Project > Settings > Allowed origins: edit the list, try an origin, see whom it would block before it is saved.

The list that is being edited lives in the form: each button sends all of it, and gets the page back with what the key
service makes of it. Only Save changes anything, and only the list that was reviewed.
"""

import asyncio
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from weakref import WeakValueDictionary

from aiohttp import web
from markupsafe import Markup
from multidict import MultiMapping

from authsvc.client.admin import AdminClient, OriginCheck, OriginsCheck, Propagation
from httpbridge.dashboard.pages import SESSION, Pages, counted, instant, whole_second
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.origin_store import SeenOrigin, seen_origins
from httpbridge.log_store.read_store import ReadStore

ENTRIES_MAX = 100
"""As many as the key service takes."""

_SEEN = timedelta(hours=24)
_NAMED_MAX = 5  # bridges in one line
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s/?#@\\]+)(?:[/?#]\S*)?")


@dataclass(frozen=True, slots=True)
class Seen:
    """An origin that was seen, and what the list in the form makes of it."""

    count: SeenOrigin
    was_admitted: bool
    """By the list that is saved."""
    check: OriginCheck


@dataclass(frozen=True, slots=True)
class Draft:
    """The list in the form."""

    entries: list[str]
    """As typed; blank ones are left out of the list."""
    tried: str = ""
    base: str = ""
    """The list that was saved when editing began, an entry a line."""
    reviewed: str | None = None
    """The normalised list that the page showed the consequences of; None before that."""
    allows_public_suffix: bool = False
    """Whether entries may admit everybody's pages under a public suffix."""

    @classmethod
    def of(cls, form: MultiMapping[object]) -> "Draft":
        reviewed = form.get("reviewed")
        return cls(
            [str(entry).strip() for entry in form.getall("entry", [])],
            str(form.get("tried", "")).strip(),
            "\n".join(str(form.get("base", "")).split()),
            None if reviewed is None else "\n".join(str(reviewed).split()),
            "allow_public_suffix" in form,
        )

    def filled(self) -> list[str]:
        return [entry for entry in self.entries if entry]


class AllowedOrigins:
    """`/projects/{project}/settings/origins`."""

    def __init__(self, admin: AdminClient, store: ReadStore, pages: Pages, now: Callable[[], datetime]) -> None:
        self._admin = admin
        self._store = store
        self._pages = pages
        self._now = now
        self._saving: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By project: one save at a time, so that of two people the second is compared with what the first saved."""
        path = "/projects/{project}/settings/origins"
        self.routes = [web.get(path, self._show), web.post(path, self._edit)]

    async def _show(self, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        draft = Draft(list(project.origins), base="\n".join(project.origins), allows_public_suffix=True)
        return await self._page(request, project.origins, draft)

    async def _edit(self, request: web.Request) -> web.Response:
        project_id = request.match_info["project"]
        form = await request.post()
        draft = Draft.of(form)
        if form.get("action") == "save":
            lock = self._saving.setdefault(project_id, asyncio.Lock())
            async with lock:
                project = await self._admin.project(project_id)
                return await self._review_or_save(request, project.origins, draft, is_save=True)
        project = await self._admin.project(project_id)
        action, _, argument = str(form.get("action", "")).partition(":")
        match action:
            case "add":
                draft.entries.append(argument)
                return await self._page(request, project.origins, draft, focus=f"entry-{len(draft.entries)}")
            case "remove" if (number := _number(argument)) < len(draft.entries):
                del draft.entries[number]
                focus = f"entry-{number + 1}" if number < len(draft.entries) else "add"  # what moved up
                return await self._page(request, project.origins, draft, focus=focus)
            case "try":
                return await self._page(request, project.origins, draft, focus="tried")
        return await self._review_or_save(request, project.origins, draft, is_save=False)

    async def _review_or_save(
        self, request: web.Request, saved: Sequence[str], draft: Draft, *, is_save: bool
    ) -> web.Response:
        """Save what was reviewed; show the consequences of anything else first."""
        filled = draft.filled()
        if len(filled) > ENTRIES_MAX:
            return await self._page(request, saved, draft, status=400)
        check = await self._admin.check_origins(filled, allow_public_suffix=draft.allows_public_suffix)
        if any(entry.error for entry in check.entries):
            first = next(number for number, error in enumerate(_errors(draft, check), 1) if error)
            return await self._page(request, saved, draft, status=400, focus=f"entry-{first}")
        normalised = tuple(dict.fromkeys(entry.entry for entry in check.entries))
        is_stale = draft.base != "\n".join(saved)
        if not is_save or is_stale or draft.reviewed != "\n".join(normalised):
            # Reviewed against what is saved now: the page says what somebody else has changed meanwhile.
            base, reviewed = "\n".join(saved), "\n".join(normalised)
            shown = Draft(list(normalised), draft.tried, base, reviewed, draft.allows_public_suffix)
            return await self._page(request, saved, shown, is_stale=is_stale, focus="review")
        project_id = request.match_info["project"]
        stored = await self._admin.set_origins(
            project_id, normalised, allow_public_suffix=draft.allows_public_suffix, caller=request[SESSION].name
        )
        saying = Markup("This was saved already. ") if stored.already_set else Markup("Saved. ")
        return self._pages.redirect(request, request.path, notice=saying + _by_when(stored.propagation))

    async def _page(
        self,
        request: web.Request,
        saved: Sequence[str],
        draft: Draft,
        *,
        status: int = 200,
        is_stale: bool = False,
        focus: str = "",
    ) -> web.Response:
        """Return the page; `focus` is the id of what the browser puts the cursor on."""
        project_id = request.match_info["project"]
        counts: Sequence[SeenOrigin] = ()
        unread = 0
        store_failure = ""
        try:
            read = await seen_origins(self._store, project_id, self._now() - _SEEN)
            counts, unread = read.origins, read.others
        except (StoreUnavailableError, StoreSetupError) as error:
            store_failure = str(error)
        tried_origin = origin_of(draft.tried)
        tried = [tried_origin] if tried_origin else []
        check = await self._admin.check_origins(
            draft.filled()[:ENTRIES_MAX],
            [*tried, *(count.origin for count in counts)],
            allow_public_suffix=draft.allows_public_suffix,
        )
        before = await self._admin.check_origins(saved, [count.origin for count in counts], allow_public_suffix=True)
        after = check.origins[len(tried) :]
        seen = [Seen(count, was.admitted, one) for count, was, one in zip(counts, before.origins, after, strict=True)]
        return self._pages.render(
            request,
            "origins.html",
            status=status,
            project_id=project_id,
            saved=saved,
            rows=list(zip(draft.entries, _errors(draft, check), strict=True)),
            draft=draft,
            public_suffixes=list(dict.fromkeys(one.public_suffix for one in check.entries if one.public_suffix)),
            filled_count=len(draft.filled()),
            entries_max=ENTRIES_MAX,
            tried_origin=tried_origin,
            tried=check.origins[0] if tried else None,
            unread=unread,
            seen=sorted(seen, key=lambda one: one.check.admitted),
            newly_blocked=[one for one in seen if one.was_admitted and not one.check.admitted],
            still_blocked=[one for one in seen if not one.was_admitted and not one.check.admitted],
            newly_admitted=[one for one in seen if not one.was_admitted and one.check.admitted],
            # What was edited since is to be reviewed anew.
            is_reviewed=draft.reviewed == "\n".join(draft.entries),
            is_changed=draft.reviewed != "\n".join(saved),
            is_stale=is_stale,
            store_failure=store_failure,
            focus=focus,
        )


def origin_of(text: str) -> str:
    """Return the origin that a page at a typed or pasted address has; empty for what is no address and no origin."""
    match = _ADDRESS.fullmatch(text)
    return text if text == "null" else match[1] if match else ""


def _number(text: str) -> int:
    """Return the number of an entry that a button names; for anything else one that no entry has."""
    return int(text) if re.fullmatch("[0-9]{1,6}", text) else sys.maxsize


def _errors(draft: Draft, check: OriginsCheck) -> list[str]:
    """Return the error of each entry as it was typed, empty where there is none."""
    checks = iter(check.entries)
    errors = []
    for entry in draft.entries:
        one = next(checks, None) if entry else None
        errors.append(one.error if one else "")
    return errors


def _by_when(propagation: Propagation) -> str:
    """Return by when a change holds; Markup where that is a time."""
    if propagation.effective:
        holders = propagation.confirmed_count
        return f"It holds everywhere: {counted(holders, 'bridge')} confirmed." if holders else "It holds everywhere."
    late = ", ".join(holder.name or "a bridge without a name" for holder in propagation.pending[:_NAMED_MAX])
    if more := propagation.pending_count - len(propagation.pending[:_NAMED_MAX]):
        late += f" and {counted(more, 'other')}"
    by = Markup("It holds everywhere at {} at the latest").format(instant(whole_second(propagation.effective_by)))
    return by + (f": no answer yet from {late}." if late else ".")
