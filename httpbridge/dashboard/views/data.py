"""Project > Settings > Data: what is stored, how long it is kept, what was dropped and erased; and erasing.

The dashboard only reads the log store, but for two forms here: each opens the store for writing and closes it again.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog
from aiohttp import web
from multidict import MultiMapping

from authsvc.client.admin import AdminClient
from httpbridge.config import RETENTION_DAYS_MAX, Config
from httpbridge.dashboard.log_page.filters import NAME_CHARACTERS_MAX, TEXT_CHARACTERS_MAX
from httpbridge.dashboard.pages import SESSION, Pages, counted_entries
from httpbridge.log_store.erasure import Erasure, Receipt, described, erasures_of
from httpbridge.log_store.inspection import usage
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.retention import ProjectData, project_data_of, set_retention
from httpbridge.log_store.scan import instant
from httpbridge.log_store.second_writer import SecondWriter
from httpbridge.log_store.selection import LogFilter
from httpbridge.text import parse_since, rfc3339

_ERASURES_MAX = 50
_log = structlog.get_logger("httpbridge.dashboard")
_BYTES = re.compile(r"([0-9]{1,15}) ?([kMGT]?)B?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LIMITS = {
    "since": NAME_CHARACTERS_MAX,
    "until": NAME_CHARACTERS_MAX,
    "service": NAME_CHARACTERS_MAX,
    "environment": NAME_CHARACTERS_MAX,
    "text": TEXT_CHARACTERS_MAX,
}
"""The fields of the form that selects what to erase, and how long each may be: none is cut, as that selects more."""


@dataclass(frozen=True, slots=True)
class Selected:
    """The form that selects what to erase."""

    fields: dict[str, str]
    """As they were sent, but times as instants where they make sense."""
    errors: dict[str, str] = field(default_factory=dict)
    selection: LogFilter | None = None
    """None where there are errors."""

    @classmethod
    def of(cls, form: MultiMapping[Any], project_id: str, now: datetime) -> "Selected":
        """Read the form; an empty field selects by nothing."""
        fields = {name: str(form.get(name, "")) for name in _LIMITS}
        errors = {
            name: f"This has more than {most} characters." for name, most in _LIMITS.items() if len(fields[name]) > most
        }
        instants: dict[str, datetime | None] = {"since": None, "until": None}
        for name in instants:
            text = fields[name].strip()
            if text and name not in errors:
                try:
                    instants[name] = at = parse_since(text, now)
                    fields[name] = rfc3339(at)
                except ValueError as error:
                    errors[name] = str(error)
        since, until = instants["since"], instants["until"]
        if since is not None and until is not None and until <= since:
            errors["until"] = "This is not after the beginning."
        if errors:
            return cls({name: text[: _LIMITS[name]] for name, text in fields.items()}, errors)
        selection = LogFilter(
            project_id=project_id,
            since=since,
            until=until,
            service=fields["service"] or None,
            environment=fields["environment"] or None,
            text=fields["text"],
        )
        return cls(fields, errors, selection)


NOTHING_SELECTED = Selected(dict.fromkeys(_LIMITS, ""))


class Data:
    """`/projects/{project}/settings/data`."""

    def __init__(
        self, admin: AdminClient, store: ReadStore, config: Config, pages: Pages, now: Callable[[], datetime]
    ) -> None:
        """Read in `store`, and write where the configuration says; `now` gives aware instants."""
        self._admin = admin
        self._store = store
        self._config = config
        self._pages = pages
        self._now = now
        self._erasing: set[asyncio.Task[Receipt]] = set()
        path = "/projects/{project}/settings/data"
        self.routes = [web.get(path, self._show), web.post(path, self._change)]

    async def _show(self, request: web.Request) -> web.Response:
        return await self._page(request)

    async def _change(self, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        form = await request.post()
        match form.get("action"):
            case "retention":
                return await self._set_retention(request, project.project_id, form)
            case "erase":
                return await self._erase(request, project.project_id, form)
        selected = Selected.of(form, project.project_id, self._now())
        if selected.selection is None:
            focus = next(name for name in _LIMITS if name in selected.errors)
            return await self._page(request, status=400, selected=selected, focus=focus)
        return await self._preview(request, selected, selected.selection)

    async def _set_retention(self, request: web.Request, project_id: str, form: MultiMapping[Any]) -> web.Response:
        kind, number = str(form.get("days", "")), str(form.get("days_number", "")).strip()
        room = str(form.get("bytes_max", "")).strip()
        errors = {}
        days = None if kind == "default" else 0
        if kind == "own":
            days = int(number) if re.fullmatch("[0-9]{1,5}", number) else 0
            if not 0 < days <= RETENTION_DAYS_MAX:
                errors["days_number"] = f"Write a number of days from 1 to {RETENTION_DAYS_MAX:,}."
        bytes_max = bytes_of(room) if room else None
        if bytes_max == 0:
            errors["bytes_max"] = "Write a number of bytes, such as 500 MB or 2 GB; nothing sets no limit."
        if kind not in ("default", "own", "all") or errors:
            shown = {"days": kind, "days_number": number[:10], "bytes_max": room[:30]}
            return await self._page(request, status=400, shown=shown, errors=errors, focus=next(iter(errors), ""))
        await project_data_of(self._store)  # which says whether this is a log store
        async with self._writer() as writer:
            await writer.transact(lambda connection: set_retention(connection, project_id, days, bytes_max))
        _log.info(
            "retention_set", project=project_id, days=days, bytes_max=bytes_max, by=f"dashboard:{request[SESSION].name}"
        )
        return self._pages.redirect(request, request.path, notice="Saved. It holds within a minute or two.")

    async def _preview(
        self, request: web.Request, selected: Selected, selection: LogFilter, *, status: int = 200, typed: str = ""
    ) -> web.Response:
        async with self._writer() as writer:
            count = await Erasure(writer, self._store, selection).count()
        words = described(selection)
        return await self._page(
            request, status=status, selected=selected, count=count, words=words, typed=typed, focus="confirm"
        )

    async def _erase(self, request: web.Request, project_id: str, form: MultiMapping[Any]) -> web.Response:
        selected = Selected.of(form, project_id, self._now())
        typed = str(form.get("confirm", "")).strip()
        if selected.selection is None:
            return await self._page(request, status=400, selected=selected)
        if typed != project_id:
            return await self._preview(request, selected, selected.selection, status=400, typed=typed[:100] or " ")
        # Begun, it goes on, also when whoever asked for it goes away.
        erasing = asyncio.create_task(self._run(selected.selection, f"dashboard:{request[SESSION].name}"))
        self._erasing.add(erasing)
        erasing.add_done_callback(self._erasing.discard)
        receipt = await asyncio.shield(erasing)
        notice = f"Erased {counted_entries(receipt.entries)}."
        if not receipt.is_scrubbed:
            notice += " The database's WAL still has some of it, as somebody reads the store: erase again later."
        return self._pages.redirect(request, request.path, notice=notice)

    async def _run(self, selection: LogFilter, by: str) -> Receipt:
        async with self._writer() as writer:
            return await Erasure(writer, self._store, selection).run(by)

    @asynccontextmanager
    async def _writer(self) -> AsyncIterator[SecondWriter]:
        writer = SecondWriter(self._config.store_url())
        try:
            yield writer
        finally:
            await writer.close()

    async def _page(
        self,
        request: web.Request,
        *,
        status: int = 200,
        selected: Selected = NOTHING_SELECTED,
        shown: dict[str, str] | None = None,
        errors: dict[str, str] | None = None,
        **values: Any,
    ) -> web.Response:
        """Return the page; `shown` is the form of the retention as it was sent, where that was refused."""
        project = await self._admin.project(request.match_info["project"])
        project_id = project.project_id
        data = (await project_data_of(self._store)).get(project_id) or ProjectData(project_id)
        own = data.retention_days
        kept = {
            "days": "default" if own is None else "own" if own else "all",
            "days_number": str(own or ""),
            "bytes_max": "" if data.bytes_max is None else bytes_text(data.bytes_max),
        }
        return self._pages.render(
            request,
            "data.html",
            status=status,
            project_id=project_id,
            stored=next(iter(await usage(self._store, project_id)), None),
            instant=instant,
            data=data,
            dropped_at=None if data.dropped_at is None else datetime.fromtimestamp(data.dropped_at, UTC),
            default_days=self._config.retention_days,
            days_max=RETENTION_DAYS_MAX,
            retention=shown or kept,
            errors={"days_number": "", "bytes_max": ""} | (errors or {}),
            erasures=[
                (datetime.fromtimestamp(one.erased_at, UTC), one)
                for one in await erasures_of(self._store, project_id, _ERASURES_MAX)
            ],
            selected=selected,
            limits=_LIMITS,
            **({"count": None, "words": "", "typed": "", "focus": ""} | values),
        )


def bytes_of(text: str) -> int:
    """Read a number of bytes, such as `500 MB`; return 0 for anything else."""
    match = _BYTES.fullmatch(text)
    return min(int(match[1]) * _FACTORS[match[2]], 2**63 - 1) if match else 0


def bytes_text(number: int) -> str:
    """Write a number of bytes so that it is read back exactly, in the largest unit that can."""
    unit, factor = next((unit, factor) for unit, factor in reversed(_FACTORS.items()) if number % factor == 0)
    return f"{number // factor} {unit}B"
