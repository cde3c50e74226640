"""Project > Settings > API Keys: the key in use, Revoke, the history; and the page that shows an API key once."""

from aiohttp import web

from authsvc.client.admin import AdminClient, Issued, Key, Project, Revoked
from httpbridge.dashboard.pages import SESSION, Pages


def reveal_key(pages: Pages, request: web.Request, project_id: str, issued: Issued | Revoked) -> web.Response:
    """Show an API key, in the response to the form that made it: the key is in no URL, cache or history."""
    return pages.render(
        request,
        "api_key.html",
        project_id=project_id,
        api_key=issued.api_key,
        revoked_key=issued.revoked_key if isinstance(issued, Revoked) else None,
        propagation=issued.propagation,
    )


class ApiKeys:
    """`/projects/{project}/settings/keys`."""

    def __init__(self, admin: AdminClient, pages: Pages) -> None:
        self._admin = admin
        self._pages = pages
        path = "/projects/{project}/settings/keys"
        self.routes = [
            web.get(path, self._show),
            web.get(path + "/revoke", self._confirm),
            web.post(path + "/revoke", self._revoke),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        keys, older = await self._admin.keys(project.project_id, page_token=request.query.get("page", ""))
        return self._pages.render(
            request, "api_keys.html", project_id=project.project_id, key=project.active_key, keys=keys, older=older
        )

    async def _confirm(self, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        key_id = request.query.get("key", "")
        if key_id != project.active_key.key_id:
            keys, _ = await self._admin.keys(project.project_id)
            for key in keys:
                if key.key_id == key_id:
                    return self._already_revoked(request, project, key)
            raise web.HTTPNotFound
        return self._pages.render(request, "revoke.html", project_id=project.project_id, key=project.active_key)

    async def _revoke(self, request: web.Request) -> web.Response:
        project_id = request.match_info["project"]
        key_id = str((await request.post()).get("key_id", ""))
        revoked = await self._admin.revoke(project_id, key_id, caller=request[SESSION].name)
        if revoked.already_revoked:
            return self._already_revoked(request, await self._admin.project(project_id), revoked.revoked_key)
        return reveal_key(self._pages, request, project_id, revoked)

    def _already_revoked(self, request: web.Request, project: Project, revoked_key: Key) -> web.Response:
        return self._pages.render(
            request,
            "already_revoked.html",
            status=409,
            project_id=project.project_id,
            revoked_key=revoked_key,
            key=project.active_key,
        )
