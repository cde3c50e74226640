"""Projects: the list, with what happens in each; making one; and the audit trail, of one project or of all."""

from collections.abc import Callable
from datetime import datetime
from functools import partial

from aiohttp import web

from authsvc.client.admin import AdminClient, RefusedError
from httpbridge.dashboard.pages import SESSION, Pages
from httpbridge.dashboard.views.api_keys import reveal_key
from httpbridge.errors import StoreUnavailableError
from httpbridge.log_store import StoreSetupError
from httpbridge.log_store.activity import Activity
from httpbridge.log_store.queries import LogQueries

_PROJECT_ID_CHARACTERS_MAX = 63
_KINDS = {
    "issue": "issued the first key",
    "revoke": "revoked the key, and issued the next one",
    "set_origins": "changed the allowed origins",
}


class Projects:
    """`/projects`, `/projects/new` and `/audit`."""

    def __init__(self, admin: AdminClient, logs: LogQueries, pages: Pages, now: Callable[[], datetime]) -> None:
        self._admin = admin
        self._logs = logs
        self._pages = pages
        self._now = now
        self.routes = [
            web.get("/", self._home),
            web.get("/projects", self._list),
            web.get("/projects/new", self._new),
            web.post("/projects/new", self._create),
            web.get("/audit", self._audit),
            web.get("/projects/{project}/audit", self._audit),
            web.get("/projects/{project}", partial(self._go_to, "logs")),
            web.get("/projects/{project}/settings", partial(self._go_to, "settings/keys")),
        ]

    async def _home(self, request: web.Request) -> web.Response:
        return self._pages.redirect(request, "/projects")

    async def _go_to(self, section: str, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        return self._pages.redirect(request, f"/projects/{project.project_id}/{section}")

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
            projects=projects,
            activity=activity,
            query=query,
            next_page=next_page,
            store_failure=store_failure,
            counted_max=self._logs.limits.activity_entries_max,
        )

    async def _new(self, request: web.Request) -> web.Response:
        return self._pages.render(request, "project_new.html", project_id="", error="", made=None)

    async def _create(self, request: web.Request) -> web.Response:
        project_id = str((await request.post()).get("project_id", "")).strip()
        name = request[SESSION].name
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
                key = project.active_key
                # By who made it; known as long as its first key is in use.
                made = project if key.creator == name and key.create_time == project.create_time else None
            shown = project_id[: 2 * _PROJECT_ID_CHARACTERS_MAX]
            return self._pages.render(request, "project_new.html", status=400, project_id=shown, error=text, made=made)
        return reveal_key(self._pages, request, project_id, issued)

    async def _audit(self, request: web.Request) -> web.Response:
        project_id = request.match_info.get("project", "")
        before = request.query.get("before", "0")
        if not before.isdecimal() or len(before) > 18:
            raise web.HTTPNotFound
        if project_id:
            await self._admin.project(project_id)  # 404 for one that is not there
        changes, older = await self._admin.changes(project_id=project_id, before_revision=int(before))
        return self._pages.render(
            request, "audit.html", project_id=project_id, changes=changes, kinds=_KINDS, older=older
        )
