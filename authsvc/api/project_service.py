"""ProjectService: projects and keys as messages, page by page."""

import base64
import re
from collections.abc import Callable
from typing import TypeVar

from authsvc.api import messages
from authsvc.api.messages import Context
from authsvc.errors import InvalidArgumentError
from authsvc.keys import PROJECT_ID_CHARACTERS_MAX, parse_project_id
from authsvc.origins import ENTRIES_MAX, OriginEntryError, OriginList, admitted_public_suffix, normalise_entry
from authsvc.storage.key_store import KeyStore
from authsvc.storage.records import Project, Revision
from authsvc.v1 import key_service_pb2 as key_pb
from authsvc.v1 import project_service_pb2 as pb
from authsvc.v1 import project_service_pb2_grpc as pb_grpc

_T = TypeVar("_T")

_CHECKED_ORIGINS_MAX = 1000
_REVISION = re.compile(r"[0-9]{1,18}")  # which is below 2^63


class ProjectService(pb_grpc.ProjectServiceServicer):
    """Reads projects and keys."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store

    async def GetProject(self, request: pb.GetProjectRequest, context: Context) -> pb.GetProjectResponse:
        """Return one project."""
        project = await self._store.project(parse_project_id(request.project_id))
        return pb.GetProjectResponse(project=_project(project))

    async def ListProjects(self, request: pb.ListProjectsRequest, context: Context) -> pb.ListProjectsResponse:
        """Return a page of projects."""
        size = messages.page_size(request.page_size)
        after = _position(request.page_token, parse_project_id) if request.page_token else ""
        if len(request.query) > PROJECT_ID_CHARACTERS_MAX:  # SQLite refuses patterns that are far longer
            raise InvalidArgumentError(
                f"query: longer than {PROJECT_ID_CHARACTERS_MAX} characters, as no project id is"
            )
        if "\0" in request.query:  # which PostgreSQL cannot compare
            raise InvalidArgumentError("query: must not contain U+0000")
        projects = await self._store.projects(after=after, limit=size + 1, containing=request.query)
        token = _page_token(projects[size - 1].project_id) if len(projects) > size else ""
        return pb.ListProjectsResponse(projects=map(_project, projects[:size]), next_page_token=token)

    async def ListKeys(self, request: pb.ListKeysRequest, context: Context) -> pb.ListKeysResponse:
        """Return a page of a project's keys."""
        project_id = parse_project_id(request.project_id)
        size = messages.page_size(request.page_size)
        before = _position(request.page_token, _parse_revision) if request.page_token else None
        keys = await self._store.keys(project_id, before=before, limit=size + 1)
        token = _page_token(str(keys[size - 1].create_revision)) if len(keys) > size else ""
        return pb.ListKeysResponse(keys=map(messages.key, keys[:size]), next_page_token=token)

    async def CheckOrigins(self, request: pb.CheckOriginsRequest, context: Context) -> pb.CheckOriginsResponse:
        """Say what a list would be stored as, and which origins it would admit."""
        if len(request.entries) > ENTRIES_MAX or len(request.origins) > _CHECKED_ORIGINS_MAX:
            raise InvalidArgumentError(
                f"{len(request.entries)} origin entries and {len(request.origins)} origins: "
                f"{ENTRIES_MAX} and {_CHECKED_ORIGINS_MAX} are the most"
            )
        checks = [_entry_check(entry, request.allow_public_suffix) for entry in request.entries]
        entries = [check.entry for check in checks if check.entry]
        listed = OriginList(entries)
        response = pb.CheckOriginsResponse(entries=checks)
        for origin in request.origins:
            admitting = listed.admitting_entries(origin)
            first = next((entry for entry in entries if entry in admitting), "")
            response.origins.add(admitted=bool(first) or not checks, entry=first)
        return response


def _entry_check(entry: str, allow_public_suffix: bool) -> pb.EntryCheck:
    try:
        normalised = normalise_entry(entry, allow_public_suffix=allow_public_suffix)
    except OriginEntryError as error:
        return pb.EntryCheck(error=error.reason, public_suffix=error.public_suffix)
    return pb.EntryCheck(entry=normalised, public_suffix=admitted_public_suffix(normalised))


def _page_token(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode()


def _position(token: str, parse: Callable[[str], _T]) -> _T:
    try:
        return parse(base64.b64decode(token, altchars=b"-_", validate=True).decode())
    except (ValueError, InvalidArgumentError):
        raise InvalidArgumentError("page_token: not one that a response carried") from None


def _parse_revision(text: str) -> Revision:
    if _REVISION.fullmatch(text) is None:
        raise ValueError
    return Revision(int(text))


def _project(project: Project) -> key_pb.Project:
    return key_pb.Project(
        project_id=project.project_id,
        origins=project.origins,
        create_time=messages.timestamp(project.create_time),
        active_key=messages.key(project.active_key) if project.active_key else None,
    )
