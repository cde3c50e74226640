"""Project > Logs: the page, one entry by itself, and the stream behind live tail.

Built by `app`, which also calls `close` when the dashboard ends. The log store is only read. Nothing here needs the
key service to be up: it only says whether there is such a project.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from aiohttp import web

from authsvc.client import KeyServiceUnavailableError
from authsvc.client.admin import AdminClient
from httpbridge.dashboard import log_chart
from httpbridge.dashboard.curl_line import curl_line
from httpbridge.dashboard.log_entries import entry_of
from httpbridge.dashboard.log_filters import RANGES, LogQuery, position_text, read_position
from httpbridge.dashboard.log_stream import LogStreams
from httpbridge.dashboard.pages import Pages
from httpbridge.log_view import rfc3339
from httpbridge.logs import Level
from httpbridge.sinks.log_queries import LogQueries
from httpbridge.sinks.log_rows import LogFilter
from httpbridge.sinks.log_tail import Mark, newest_mark
from httpbridge.sinks.read_store import ReadStore

_PROJECT_SECONDS_MAX = 1.0
"""How long logs wait for the key service, which they do not need."""


class Logs:
    """`/projects/{project}/logs`, and below it `/stream` and `/{id}`."""

    def __init__(
        self,
        admin: AdminClient,
        store: ReadStore,
        queries: LogQueries,
        streams: LogStreams,
        pages: Pages,
        clients_url: str,
        now: Callable[[], datetime],
    ) -> None:
        """Read `store` by way of the queries; `clients_url` is where clients send; `now` gives aware instants."""
        self._admin = admin
        self._store = store
        self._queries = queries
        self._streams = streams
        self._pages = pages
        self._clients_url = clients_url
        self._now = now

    def routes(self) -> list[web.RouteDef]:
        """Return them."""
        path = "/projects/{project}/logs"
        return [
            web.get(path, self._show),
            web.get(path + "/stream", self._stream, allow_head=False),
            web.get(path + "/{id:[0-9]{1,18}}", self._entry),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        project_id = await self._project_id(request)
        query = LogQuery.of(request.query)
        now = self._now()
        selection, errors = query.selection(project_id, now)
        before = read_position(request.query.get("before", ""))
        # Asked for first, so that nothing is missing between the page and the stream.
        mark = await newest_mark(self._store)
        # Going on with a search for a text counts nothing again: that is as much work as the search.
        is_counted = before is None or not selection.text
        try:
            async with asyncio.TaskGroup() as group:
                asking_page = group.create_task(self._queries.page(selection, before, is_counted=is_counted))
                asking_names = group.create_task(self._queries.names(selection))
                asking_chart = group.create_task(self._chart(selection, now)) if is_counted else None
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # of one store: the others say the same
        page = asking_page.result()
        services, environments = asking_names.result()
        older = query.url(before=position_text(page.older)) if page.older is not None else ""
        is_live = before is None and selection.until is None
        has_any = bool(page.rows) or await self._queries.oldest(project_id) is not None
        return self._pages.render(
            request,
            "logs.html",
            project_id=project_id,
            query=query,
            errors=errors,
            levels=[level.value for level in Level],
            ranges=RANGES,
            # Offered to be chosen as they are; what does not print is not.
            services=[name for name in services if name.isprintable()],
            environments=[name for name in environments if name.isprintable()],
            chart=asking_chart.result() if asking_chart is not None else None,
            entries=[entry_of(row) for row in page.rows],
            page=page,
            older=older,
            newest=query.url() if before is not None else "",
            stream=f"/projects/{project_id}/logs/stream{query.url(after=str(mark))}" if is_live else "",
            has_any=has_any,
            until=selection.until,
            curl_line=curl_line(self._clients_url),
            rfc3339=rfc3339,
        )

    async def _chart(self, selection: LogFilter, now: datetime) -> log_chart.Chart | None:
        since = selection.since if selection.since is not None else await self._queries.oldest(selection.project_id)
        if since is None:
            return None
        until = selection.until if selection.until is not None else max(now, since)
        starts = log_chart.edges(since, until)
        last = [] if selection.until is None else [selection.until]
        bars = await self._queries.bars(selection, [*starts, *last])
        return log_chart.chart(bars, starts, until)

    async def _entry(self, request: web.Request) -> web.Response:
        project_id = await self._project_id(request)
        row = await self._queries.row(project_id, int(request.match_info["id"]))
        if row is None:
            raise web.HTTPNotFound
        entry = entry_of(row, is_alone=True)
        return self._pages.render(request, "log_entry.html", project_id=project_id, entry=entry)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        project_id = await self._project_id(request)
        selection, _ = LogQuery.of(request.query).selection(project_id, self._now())
        # The header wins: a browser that connects again sends the old address with it.
        for text in (request.headers.get("Last-Event-ID", ""), request.query.get("after", "")):
            if (mark := Mark.read(text)) is not None:
                return await self._streams.serve(request, selection, mark)
        return await self._streams.serve(request, selection, await newest_mark(self._store))

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
