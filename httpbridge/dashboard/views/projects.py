"""Projects: the list, with what happens in each; and making one."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from aiohttp import web

from authsvc.client.admin import AdminClient, Project, RefusedError
from httpbridge.dashboard.pages import Pages, session_of
from httpbridge.dashboard.views.api_keys import KeyReveal
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.queries import ACTIVITY_LOGS_MAX, Activity, LogQueries

_PROJECT_ID_CHARACTERS_MAX = 63


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the list; no activity when the log store is unavailable."""

    project: Project
    activity: Activity | None


class Projects:
    """`/projects` and `/projects/new`."""

    def __init__(
        self, admin: AdminClient, logs: LogQueries, pages: Pages, reveal: KeyReveal, now: Callable[[], datetime]
    ) -> None:
        """`now` gives aware instants."""
        self._admin = admin
        self._logs = logs
        self._pages = pages
        self._reveal = reveal
        self._now = now

    def routes(self) -> list[web.RouteDef]:
        """Return them."""
        return [
            web.get("/", self._home),
            web.get("/projects", self._list),
            web.get("/projects/new", self._new),
            web.post("/projects/new", self._create),
            web.get("/projects/{project}", self._project),
            web.get("/projects/{project}/settings", self._settings),
        ]

    async def _home(self, request: web.Request) -> web.Response:
        return self._pages.redirect(request, "/projects")

    async def _project(self, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        return self._pages.redirect(request, f"/projects/{project.project_id}/logs")

    async def _settings(self, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        return self._pages.redirect(request, f"/projects/{project.project_id}/settings/keys")

    async def _list(self, request: web.Request) -> web.Response:
        query = request.query.get("q", "").strip()[:_PROJECT_ID_CHARACTERS_MAX].replace("\0", "")
        projects, next_page = await self._admin.projects(query=query, page_token=request.query.get("page", ""))
        store_failure = ""
        activity: dict[str, Activity] = {}
        try:
            activity = await self._logs.activity([project.project_id for project in projects], self._now())
        except (StoreUnavailableError, StoreSetupError) as error:
            store_failure = str(error)
        return self._pages.render(
            request,
            "projects.html",
            rows=[Row(project, activity.get(project.project_id)) for project in projects],
            query=query,
            next_page=next_page,
            store_failure=store_failure,
            counted_max=ACTIVITY_LOGS_MAX,
        )

    async def _new(self, request: web.Request) -> web.Response:
        return self._pages.render(request, "project_new.html", project_id="", error="", made=None)

    async def _create(self, request: web.Request) -> web.Response:
        project_id = str((await request.post()).get("project_id", "")).strip()
        name = session_of(request).name
        made = None
        try:
            issued = await self._admin.issue(project_id, (), caller=name)
        except RefusedError as error:
            if error.status == "NOT_FOUND":
                raise
            text = "A project cannot have this name."
            if error.status == "ALREADY_EXISTS":
                text = f"There is a project {project_id} already."
                project = await self._admin.project(project_id)
                made = project if _made_by(project, name) else None
            shown = project_id[: 2 * _PROJECT_ID_CHARACTERS_MAX]
            return self._pages.render(request, "project_new.html", status=400, project_id=shown, error=text, made=made)
        return self._reveal.page(request, project_id, issued)


def _made_by(project: Project, name: str) -> bool:
    """Whether that person made it: the creator of its first key, as long as that one is in use."""
    key = project.active_key
    return key.creator == name and key.create_time == project.create_time
