"""Audit: who issued, revoked and changed origins, and when."""

from aiohttp import web

from authsvc.client.admin import AdminClient
from httpbridge.dashboard.pages import Pages

_KINDS = {
    "issue": "issued the first key",
    "revoke": "revoked the key, and issued the next one",
    "set_origins": "changed the allowed origins",
}


class Audit:
    """`/audit`, of one project or of all."""

    def __init__(self, admin: AdminClient, pages: Pages) -> None:
        self._admin = admin
        self._pages = pages
        self.routes = [web.get("/audit", self._show), web.get("/projects/{project}/audit", self._show)]

    async def _show(self, request: web.Request) -> web.Response:
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
