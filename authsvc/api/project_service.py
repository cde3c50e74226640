"""ProjectService: projects and keys as messages, page by page.

Registered by `app`, called by gRPC behind `interceptors`.
"""

import base64
import binascii
import re

from authsvc.api import messages
from authsvc.api.messages import Context
from authsvc.errors import InvalidArgumentError
from authsvc.keys import PROJECT_ID_CHARACTERS_MAX, ProjectId, parse_project_id
from authsvc.origins import (
    ENTRIES_MAX,
    OriginEntryError,
    OriginList,
    admitted_public_suffix,
    normalise_entry,
    public_suffix_reason,
)
from authsvc.storage.key_store import KeyStore
from authsvc.storage.records import Project, Revision
from authsvc.v1 import key_service_pb2 as pb
from authsvc.v1 import project_service_pb2 as project_pb2
from authsvc.v1 import project_service_pb2_grpc as project_pb2_grpc

_CHECKED_ORIGINS_MAX = 1000
_REVISION = re.compile(r"[0-9]{1,18}")  # which is below 2^63


class ProjectService(project_pb2_grpc.ProjectServiceServicer):
    """Reads projects and keys."""

    def __init__(self, store: KeyStore) -> None:
        """Read from the store, which stays the caller's to close."""
        self._store = store

    async def GetProject(
        self, request: project_pb2.GetProjectRequest, context: Context
    ) -> project_pb2.GetProjectResponse:
        """Return one project."""
        project = await self._store.project(parse_project_id(request.project_id))
        return project_pb2.GetProjectResponse(project=_project(project))

    async def ListProjects(
        self, request: project_pb2.ListProjectsRequest, context: Context
    ) -> project_pb2.ListProjectsResponse:
        """Return a page of projects."""
        size = messages.page_size(request.page_size)
        after = _project_position(request.page_token) if request.page_token else ""
        if len(request.query) > PROJECT_ID_CHARACTERS_MAX:  # SQLite refuses patterns that are far longer
            raise InvalidArgumentError(
                f"query: longer than {PROJECT_ID_CHARACTERS_MAX} characters, as no project id is"
            )
        if "\0" in request.query:  # which PostgreSQL cannot compare
            raise InvalidArgumentError("query: must not contain U+0000")
        projects = await self._store.projects(after=after, limit=size + 1, containing=request.query)
        token = _page_token(projects[size - 1].project_id) if len(projects) > size else ""
        return project_pb2.ListProjectsResponse(projects=map(_project, projects[:size]), next_page_token=token)

    async def ListKeys(self, request: project_pb2.ListKeysRequest, context: Context) -> project_pb2.ListKeysResponse:
        """Return a page of a project's keys."""
        project_id = parse_project_id(request.project_id)
        size = messages.page_size(request.page_size)
        before = _revision_position(request.page_token) if request.page_token else None
        keys = await self._store.keys(project_id, before=before, limit=size + 1)
        token = _page_token(str(keys[size - 1].create_revision)) if len(keys) > size else ""
        return project_pb2.ListKeysResponse(keys=map(messages.key, keys[:size]), next_page_token=token)

    async def CheckOrigins(
        self, request: project_pb2.CheckOriginsRequest, context: Context
    ) -> project_pb2.CheckOriginsResponse:
        """Say what a list would be stored as, and which origins it would admit."""
        if len(request.entries) > ENTRIES_MAX or len(request.origins) > _CHECKED_ORIGINS_MAX:
            raise InvalidArgumentError(
                f"{len(request.entries)} origin entries and {len(request.origins)} origins: "
                f"{ENTRIES_MAX} and {_CHECKED_ORIGINS_MAX} are the most"
            )
        checks = [_entry_check(entry, request.allow_public_suffix) for entry in request.entries]
        entries = [check.entry for check in checks if check.entry]
        listed = OriginList(entries)
        answer = project_pb2.CheckOriginsResponse(entries=checks)
        for origin in request.origins:
            admitting = listed.admitting_entries(origin)
            first = next((entry for entry in entries if entry in admitting), "")
            answer.origins.add(admitted=bool(first) or not checks, entry=first)
        return answer


def _entry_check(entry: str, allow_public_suffix: bool) -> project_pb2.EntryCheck:
    try:
        normalised = normalise_entry(entry)
    except OriginEntryError as error:
        return project_pb2.EntryCheck(error=error.reason)
    suffix = admitted_public_suffix(normalised)
    if suffix and not allow_public_suffix:
        return project_pb2.EntryCheck(error=public_suffix_reason(suffix), public_suffix=suffix)
    return project_pb2.EntryCheck(entry=normalised, public_suffix=suffix)


def _page_token(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode()


def _project_position(token: str) -> ProjectId:
    try:
        return parse_project_id(_page_position(token))
    except InvalidArgumentError:
        raise _bad_page_token() from None


def _revision_position(token: str) -> Revision:
    position = _page_position(token)
    if _REVISION.fullmatch(position) is None:
        raise _bad_page_token()
    return Revision(int(position))


def _page_position(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise _bad_page_token() from None


def _bad_page_token() -> InvalidArgumentError:
    return InvalidArgumentError("page_token: not one that a response carried")


def _project(project: Project) -> pb.Project:
    message = pb.Project(project_id=project.project_id, origins=project.origins)
    message.create_time.CopyFrom(messages.timestamp(project.create_time))
    if project.active_key is not None:
        message.active_key.CopyFrom(messages.key(project.active_key))
    return message
