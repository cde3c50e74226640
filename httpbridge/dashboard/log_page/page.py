"""Project > Logs: the page, one entry by itself, and the stream behind live tail. Built by `app`.

The log store is only read. Nothing here needs the key service to be up: it only says whether there is such a project.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from aiohttp import web

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.admin import AdminClient
from httpbridge.dashboard.log_page import chart as log_chart
from httpbridge.dashboard.log_page.filters import (
    AHEAD_MAX,
    CUSTOM,
    DEFAULT_RANGE,
    PLAUSIBLE_SINCE,
    RANGES,
    LogQuery,
    ending,
    position_text,
    read_position,
)
from httpbridge.dashboard.log_page.stream import LogStreams
from httpbridge.dashboard.pages import Pages
from httpbridge.log_store.queries import LogQueries
from httpbridge.log_store.read_store import ReadStore
from httpbridge.log_store.selection import LogFilter
from httpbridge.log_store.tail import Cursor, newest_cursor
from httpbridge.logs import Level

_PROJECT_SECONDS_MAX = 1.0
"""How long logs wait for the key service, which they do not need."""

_AROUND = timedelta(minutes=1)
_AHEAD_MINUTES = AHEAD_MAX // timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Claim:
    """Entries whose time cannot be right: what they claim, how many there are, and where."""

    text: str
    number: int
    url: str


class Logs:
    """`/projects/{project}/logs`, and below it `/stream` and `/{id}`."""

    def __init__(
        self,
        admin: AdminClient,
        store: ReadStore,
        queries: LogQueries,
        streams: LogStreams,
        pages: Pages,
        now: Callable[[], datetime],
    ) -> None:
        self._admin = admin
        self._store = store
        self._queries = queries
        self._streams = streams
        self._pages = pages
        self._now = now
        path = "/projects/{project}/logs"
        self.routes = [
            web.get(path, self._show),
            web.get(path + "/stream", self._stream, allow_head=False),
            web.get(path + "/{id:[0-9]{1,18}}", self._entry),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        project_id = await self._project_id(request)
        query = LogQuery.of(request.query)
        now = self._now()
        arriving, errors = query.selection(project_id, now)
        selection = ending(arriving, now)
        is_open = arriving.until is None
        before = read_position(request.query.get("before", ""))
        # Asked for first, so that nothing is missing between the page and the stream.
        cursor = await newest_cursor(self._store)
        # Going on with a search for a text counts nothing again: that is as much work as the search.
        is_counted = before is None or not selection.text
        try:
            async with asyncio.TaskGroup() as group:
                asking_page = group.create_task(self._queries.page(selection, before, is_counted=is_counted))
                asking_facets = group.create_task(self._queries.facets(selection))
                asking_chart = group.create_task(self._chart(selection, now, is_open=is_open)) if is_counted else None
                asking_claims = group.create_task(self._claims(selection, is_open=is_open)) if before is None else None
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # of one store: the others say the same
        page = asking_page.result()
        services, environments = asking_facets.result()
        older = query.url(before=position_text(page.older)) if page.older is not None else ""
        is_live = before is None and is_open
        has_any = bool(page.rows) or await self._queries.oldest(project_id) is not None
        return self._pages.render(
            request,
            "logs.html",
            project_id=project_id,
            query=query,
            errors=errors,
            levels=[level.value for level in Level],
            ranges=RANGES,
            custom=CUSTOM,
            default_range=DEFAULT_RANGE,
            claims=asking_claims.result() if asking_claims is not None else [],
            numbered_max=self._queries.limits.counted_entries_max,
            # Offered to be chosen as they are; what does not print is not.
            services=[name for name in services if name.isprintable()],
            environments=[name for name in environments if name.isprintable()],
            chart=asking_chart.result() if asking_chart is not None else None,
            page=page,
            older=older,
            newest=query.url() if before is not None else "",
            stream=f"/projects/{project_id}/logs/stream{query.url(after=str(cursor))}" if is_live else "",
            has_any=has_any,
            is_open=is_open,
        )

    async def _chart(self, selection: LogFilter, now: datetime, *, is_open: bool) -> log_chart.Chart | None:
        """Count and draw; where there is too much to count, what the budget reaches, so that its bars are fine."""
        until = selection.until
        if until is None:  # it begins later than now
            return None
        since = selection.since
        if since is None:
            since = await self._queries.oldest(selection.project_id, PLAUSIBLE_SINCE)
            if since is None or since >= until:
                since = await self._queries.oldest(selection.project_id)
            if since is None or since >= until:
                return None
        selection = msgspec.structs.replace(selection, since=since)
        countable_since = await self._queries.countable_since(selection)
        if countable_since is not None:
            since = countable_since
            selection = msgspec.structs.replace(selection, since=since)
        shown_until = max(now, since) if is_open else until
        starts = log_chart.edges(since, shown_until)
        bars = await self._queries.histogram(selection, [*starts, until])
        return log_chart.chart(bars, starts, shown_until, is_open=is_open, countable_since=countable_since)

    async def _claims(self, selection: LogFilter, *, is_open: bool) -> list[Claim]:
        """Return what the page or its chart leaves out because its time cannot be right."""
        project_id = selection.project_id
        claims = []
        if is_open and selection.until is not None:
            number = await self._queries.count(LogFilter(project_id=project_id, since=selection.until))
            url = LogQuery(range=CUSTOM).url(since=selection.until)
            claims.append(Claim(f"to be from the future, over {_AHEAD_MINUTES} minutes from now", number, url))
        if selection.since is None and (selection.until is None or selection.until > PLAUSIBLE_SINCE):
            number = await self._queries.count(LogFilter(project_id=project_id, until=PLAUSIBLE_SINCE))
            url = LogQuery(range=CUSTOM).url(until=PLAUSIBLE_SINCE)
            text = f"to be older than the year {PLAUSIBLE_SINCE.year}, where the chart begins"
            claims.append(Claim(text, number, url))
        return [claim for claim in claims if claim.number]

    async def _entry(self, request: web.Request) -> web.Response:
        project_id = await self._project_id(request)
        row = await self._queries.row(project_id, int(request.match_info["id"]))
        if row is None:
            raise web.HTTPNotFound
        around = _around(row.log.timestamp)
        return self._pages.render(request, "log_entry.html", project_id=project_id, row=row, around=around)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        project_id = await self._project_id(request)
        selection, _ = LogQuery.of(request.query).selection(project_id, self._now())
        # The header wins: a browser that connects again sends the old address with it.
        for text in (request.headers.get("Last-Event-ID", ""), request.query.get("after", "")):
            if (cursor := Cursor.read(text)) is not None:
                return await self._streams.serve(request, selection, cursor)
        return await self._streams.serve(request, selection, await newest_cursor(self._store))

    async def _project_id(self, request: web.Request) -> str:
        """Return the project in the address; raises RefusedError when there is none of that name."""
        project_id = request.match_info["project"]
        if "\0" in project_id or not project_id.isprintable():
            raise web.HTTPNotFound
        # Where nobody knows, whoever guesses a name sees an empty project.
        with suppress(KeyServiceUnavailableError, TimeoutError):
            async with asyncio.timeout(_PROJECT_SECONDS_MAX):
                await self._admin.project(project_id)
        return project_id


def _around(instant: datetime) -> str:
    """Return the query string of the entries around an instant; empty at the ends of time."""
    try:
        return LogQuery(range=CUSTOM).url(since=instant - _AROUND, until=instant + _AROUND)
    except OverflowError:
        return ""
