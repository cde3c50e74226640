"""Project > Settings > API Keys: the key in use, Revoke, the history; and the page that shows an API key once."""

from dataclasses import dataclass

from aiohttp import web

from authsvc.client.admin import AdminClient, Issued, Key, Project, Revoked
from httpbridge.dashboard.pages import Pages, session_of
from httpbridge.dashboard.views.curl_line import curl_line


@dataclass(frozen=True, slots=True)
class PastKey:
    """A revoked key."""

    key: Key
    revoker: str
    """Who issued the next key, which is one step with revoking this one; empty where that is on another page."""


class KeyReveal:
    """Shows an API key, as the answer to the form that made it: the key is in no URL, cache or history."""

    def __init__(self, pages: Pages, clients_url: str) -> None:
        """`clients_url` is where clients reach the bridge."""
        self._pages = pages
        self._clients_url = clients_url

    def page(self, request: web.Request, project_id: str, issued: Issued | Revoked) -> web.Response:
        """Return the page of a key that is a project's first one, or takes another's place."""
        api_key = issued.api_key
        return self._pages.render(
            request,
            "api_key.html",
            project_id=project_id,
            api_key=api_key,
            key=issued.key,
            revoked_key=issued.revoked_key if isinstance(issued, Revoked) else None,
            propagation=issued.propagation,
            env_lines=f"DEEPTRACER_KEY={api_key}\nNEXT_PUBLIC_DEEPTRACER_KEY={api_key}",
            curl_line=curl_line(self._clients_url, api_key),
        )


class ApiKeys:
    """`/projects/{project}/settings/keys`."""

    def __init__(self, admin: AdminClient, pages: Pages, reveal: KeyReveal) -> None:
        self._admin = admin
        self._pages = pages
        self._reveal = reveal

    def routes(self) -> list[web.RouteDef]:
        """Return them."""
        path = "/projects/{project}/settings/keys"
        return [
            web.get(path, self._show),
            web.get(path + "/revoke", self._confirm),
            web.post(path + "/revoke", self._revoke),
        ]

    async def _show(self, request: web.Request) -> web.Response:
        project = await self._admin.project(request.match_info["project"])
        keys, older = await self._admin.keys(project.project_id, page_token=request.query.get("page", ""))
        successors = [None, *keys]
        past = [
            PastKey(key, successor.creator if successor else "")
            for key, successor in zip(keys, successors, strict=False)
            if key.HasField("revoke_time")
        ]
        return self._pages.render(
            request, "api_keys.html", project_id=project.project_id, key=project.active_key, past=past, older=older
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
        revoked = await self._admin.revoke(project_id, key_id, caller=session_of(request).name)
        if revoked.already_revoked:
            return self._already_revoked(request, await self._admin.project(project_id), revoked.revoked_key)
        return self._reveal.page(request, project_id, revoked)

    def _already_revoked(self, request: web.Request, project: Project, revoked_key: Key) -> web.Response:
        return self._pages.render(
            request,
            "already_revoked.html",
            status=409,
            project_id=project.project_id,
            revoked_key=revoked_key,
            key=project.active_key,
        )
