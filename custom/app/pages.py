"""The pages and what they ask the server to do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from custom import __version__
from custom.app.case_folder import EARLIER, RESULT, UNREADABLE, Case, Cases, Refused, refusal
from custom.app.guard import Guard, chunks_of, form_of
from custom.app.question_fields import (
    ASSUMPTIONS,
    FIELDS,
    SKETCHED,
    asked_about,
    called,
    chosen,
    parse_answer,
    sentence,
    written,
)
from custom.app.result_files import REPORTS, downloads, file_of, zipped
from custom.app.work_queue import Installation, WorkQueue, progress
from custom.core.files import read_json_object
from custom.report.document import visible
from custom.sampling.atlas import WHOSE_DETAIL

__all__ = ["create_app"]

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_LONGEST_NAME = 255
_QUERIES = ("accession", "study", "patient")
#: A report brings scripts of its own, which its own policy names; here it may do nothing with this server.
_OF_REPORTS = {"Content-Security-Policy": "sandbox allow-scripts allow-modals allow-downloads; frame-ancestors 'none'"}


def create_app(cases: Cases, installation: Installation, hosts: Collection[str], token: str | None = None) -> Starlette:
    """The application, for an ASGI server or a test client.

    Args:
        cases: where they are kept.
        installation: what this machine has.
        hosts: names and addresses that the server is reached by.
        token: that every client has to give once; None: only this machine reaches the server.
    """
    pages = _Pages(cases, installation)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        pages.queue = WorkQueue(cases, installation)
        worker = asyncio.create_task(pages.queue.work())
        yield
        worker.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await worker
        cases.close()

    case = "/cases/{id}"
    routes = [
        Route("/", pages.start),
        Route("/health", lambda _: PlainTextResponse("ok\n")),
        Route("/cases", pages.create, methods=["POST"]),
        Route(case, pages.show),
        Route(f"{case}/state", pages.state),
        Route(f"{case}/files", pages.upload, methods=["POST"]),
        Route(f"{case}/picture/{{number}}", pages.picture),
        Route(f"{case}/view/{{name}}", pages.view),
        Route(f"{case}/download/{{name}}", pages.download),
        *(
            Route(f"{case}/{name}", pages.step(action), methods=["POST"])
            for name, action in {
                "read": pages.read, "answers": pages.answer, "remove-files": pages.remove_files,
                "reconstruct": pages.reconstruct, "plan": pages.plan, "send": pages.send, "edit": pages.edit,
            }.items()
        ),
        Route(f"{case}/stop", pages.stop, methods=["POST"]),
        Route(f"{case}/delete", pages.delete, methods=["POST"]),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]  # fmt: skip
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, hosts=hosts, token=token, sign_in=pages.sign_in)],
        exception_handlers={Refused: pages.refused, 404: pages.unknown, OSError: pages.disk},
    )
    app.router.redirect_slashes = False
    return app


class _Pages:
    queue: WorkQueue

    def __init__(self, cases: Cases, installation: Installation) -> None:
        self.cases, self.here = cases, installation
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            finalize=visible,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["sentence"] = sentence
        self._templates.globals["whose_detail"] = WHOSE_DETAIL

    def _page(self, template: str, status: int = 200, **content: Any) -> HTMLResponse:
        text = self._templates.get_template(template).render(
            version=__version__, here=self.here, limits=self.cases.limits, **content
        )
        return HTMLResponse(text, status)

    def _case(self, request: Request) -> Case:
        return self.cases.find(request.path_params["id"])

    def sign_in(self, request: Request, wrong: bool) -> Response:
        """The page that asks for the token."""
        target = request.url.path if request.method == "GET" else "/"
        return self._page("sign_in.html", 403 if wrong else 401, wrong=wrong, target=target)

    async def refused(self, request: Request, error: Exception) -> Response:
        """A page, or one line for the page's own script."""
        assert isinstance(error, Refused)
        if "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(f"{error}\n", error.status)
        return self._page("message.html", error.status, text=str(error))

    async def unknown(self, request: Request, error: Exception) -> Response:
        """There is nothing at this address."""
        return await self.refused(request, Refused(404, "There is nothing at this address."))

    async def disk(self, request: Request, error: Exception) -> Response:
        """The disk took nothing, or gave nothing."""
        logger.error("%s", error)
        return await self.refused(request, refusal(error))

    async def start(self, request: Request) -> Response:
        """Where radiographs are dropped."""
        return self._page("start.html")

    async def create(self, request: Request) -> Response:
        """A new case, for the page's script, or from the form that asks the PACS."""
        fields = await form_of(request)
        query = {key: values[0].strip() for key, values in fields.items() if key in ("by", "value")}
        if query:
            _check_query(query, self.here)
        case = self.cases.create()
        if query:
            case.wait_for("fetch", **query)
            self.queue.wake()
            return RedirectResponse(f"/cases/{case.id}", 303)
        return JSONResponse({"id": case.id}, 201)

    async def upload(self, request: Request) -> Response:
        """One file, as it is, bounded while it comes."""
        case, most = self._case(request), self.cases.limits.file_mb * 1_000_000
        name = request.query_params.get("name", "").strip() or "no name"
        if case.is_busy:
            raise Refused(409, f"{name} was not taken: this case is being worked on. Send it again when that is done.")
        if len(name) > _LONGEST_NAME:
            raise Refused(400, f"{name[:40]}…: a file's name may have {_LONGEST_NAME} characters; shorten it.")
        too_large = Refused(413, f"A file of more than {self.cases.limits.file_mb} MB is not taken.")
        if int(request.headers.get("content-length", "0") or 0) > most:
            raise too_large
        size = 0
        with case.new_file(name, self.cases.limits.files) as stream:
            async for chunk in chunks_of(request):
                size += len(chunk)
                if size > most:
                    raise too_large
                self.cases.check_space()
                stream.write(chunk)
        return JSONResponse({"bytes": size}, 201)

    def step(self, action: Callable[[Case, dict[str, list[str]]], None]) -> Callable[[Request], Awaitable[Response]]:
        """A form that changes a case and leads back to its page."""

        async def handle(request: Request) -> Response:
            fields = await form_of(request)
            case = self._case(request)  # as it is once the form is there
            if case.is_busy:
                raise Refused(409, "This case is being worked on: wait until that is done.")
            if action != self.remove_files and (coming := case.unfinished()):
                raise Refused(409, f"{case.record['files'][coming[0]]} is still on its way: wait until it is there.")
            action(case, fields)
            self.queue.wake()
            return RedirectResponse(f"/cases/{case.id}", 303)

        return handle

    def read(self, case: Case, fields: dict[str, list[str]]) -> None:
        """Read the files."""
        if not any(not own.endswith(".json") for own in case.record["files"]):
            raise Refused(400, "There is no radiograph yet.")
        lonely = [
            name for own, name in case.record["files"].items() if own.endswith(".json") and not _has_picture(case, own)
        ]
        if lonely:
            raise Refused(400, f"{lonely[0]}: no radiograph has this name; a sidecar is called as its radiograph.")
        case.wait_for("read")

    def answer(self, case: Case, fields: dict[str, list[str]]) -> None:
        """Take the form's answers, and read again with them."""
        answers = {name: dict(values) for name, values in case.record["answers"].items()}
        reading, wrong = _reading(case), ""
        names = [one["file"] for one in reading["radiographs"]]
        if fields.get("shown", names) != names:  # what was written to one would be taken for another
            raise Refused(409, "The radiographs of this case were changed on another page: load this one again.")
        for number, one in enumerate(reading["radiographs"]):
            own = answers.setdefault(one["file"], {})
            for key in FIELDS:
                given = fields.get(f"{number}:{key}")
                if given is None:
                    continue
                try:
                    value = parse_answer(key, given[-1])
                except ValueError as error:
                    wrong = wrong or case.shown(f"{one['file']}: {error}")
                    continue
                if value is None:
                    own.pop(key, None)
                else:
                    own[key] = value
        kept = [name for name in case.record["accept"] if name not in fields.get("offered", [])]
        accept = [name for name in fields.get("accept", []) if name in ASSUMPTIONS]
        accept = sorted({*kept, *accept})
        answers = {name: values for name, values in answers.items() if values}
        if reading["questions"] and reading.get("given") == {"answers": answers, "accept": accept}:
            wrong = wrong or "Nothing new was answered: write or choose something where an answer is asked for."
        adding = "adding" in fields  # radiographs come next, and all are read after them
        case.save(answers=answers, accept=accept, error="" if adding else wrong)
        case.write_answers()
        if not wrong and not adding:
            self.read(case, fields)

    def remove_files(self, case: Case, fields: dict[str, list[str]]) -> None:
        """Go on without a radiograph, or several."""
        case.remove_files(fields.get("file", []))
        case.write_answers()
        if not case.unfinished() and any(not own.endswith(".json") for own in case.record["files"]):
            self.read(case, fields)

    def edit(self, case: Case, fields: dict[str, list[str]]) -> None:
        """Back to the radiographs of a finished case."""
        self.read(case, fields)

    def reconstruct(self, case: Case, fields: dict[str, list[str]]) -> None:
        """Make the CT."""
        if case.has(f"{RESULT}/result.json"):
            raise Refused(409, "The CT was made meanwhile: load this case's page again.")
        if (reading := _reading(case))["questions"]:
            raise Refused(409, "Something is still missing about the radiographs.")
        if reading.get("given") != {key: case.record[key] for key in ("answers", "accept")}:
            raise Refused(409, "Answers were changed and not read yet: go back and read again with them first.")
        model = fields.get("model", [""])[0]
        if model not in self.here.models:
            raise Refused(400, "There is no such model here.")
        text = fields.get("samples", ["0"])[0].strip() or "0"
        samples = int(text) if text.isdecimal() and len(text) < 4 else -1
        if not self.here.models[model][1]:
            samples = 0
        if samples not in (0, *range(2, self.cases.limits.samples + 1)):
            raise Refused(400, f"The number of samples is 0, or 2 to {self.cases.limits.samples}.")
        case.wait_for("reconstruct", model=model, samples=samples)

    def plan(self, case: Case, fields: dict[str, list[str]]) -> None:
        """Plan on the CT."""
        template = fields.get("template", [""])[0]
        if template not in self.here.templates or not case.has("result/result.json"):
            raise Refused(400, "There is no such plan here.")
        case.wait_for("plan", template=template)

    def send(self, case: Case, fields: dict[str, list[str]]) -> None:
        """Send the CT to the PACS."""
        if self.here.send_to is None or not case.has("result/ct"):
            raise Refused(400, "Nothing can be sent from here.")
        case.wait_for("send")

    async def delete(self, request: Request) -> Response:
        """Remove a case with all its files, whatever it is doing."""
        case = self._case(request)
        folder = self.cases.take_out(case)
        await self.queue.stop(case)  # nothing is written any more
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)
        return RedirectResponse("/", 303)

    async def stop(self, request: Request) -> Response:
        """End what a case waits for or does; files, answers and an earlier result stay."""
        case = self._case(request)
        await self.queue.give_up(case)
        return RedirectResponse(f"/cases/{case.id}", 303)

    async def state(self, request: Request) -> Response:
        """What the page's script asks for each second."""
        return JSONResponse(self._state(self._case(request)))

    def _state(self, case: Case) -> dict[str, Any]:
        state, since = case.record["state"], case.record.get("began", 0.0)
        ids = [one.id for one in self.queue.waiting()] if state == "waiting" else []
        before = ids.index(case.id) if case.id in ids else 0
        elapsed = round(time.time() - since) if state == "running" else 0
        step = progress(case) if state == "running" else ""
        return {"state": state, "before": before, "seconds": elapsed, "step": step}

    async def show(self, request: Request) -> Response:
        """The page of a case, as far as it has come."""
        case = self._case(request)
        content: dict[str, Any] = {"case": case, "record": case.record, "until": None}
        if self.cases.limits.keep_days:
            until = case.record["created"] + 86_400 * self.cases.limits.keep_days
            content["until"] = time.strftime("%Y-%m-%d", time.localtime(until))
        if case.is_busy:
            return self._page("working.html", **content, **self._state(case))
        content["earlier"] = _json(case, f"{EARLIER}/result.json")
        if result := _json(case, f"{RESULT}/result.json"):
            plan, patient = _json(case, "plan/plan.json"), _json(case, "reading.json").get("patient", {})
            return self._page(
                "result.html", **content, result=result, plan=plan, patient=patient, files=downloads(case)
            )
        if case.has("reading.json"):
            reading = _reading(case)
            asked = {one["file"]: asked_about(reading, one["file"]) for one in reading["radiographs"]}
            words: dict[str, Any] = {"fields": FIELDS, "sketched": SKETCHED, "assumptions": ASSUMPTIONS,
                     "called": called, "chosen": chosen, "written": written}  # fmt: skip
            return self._page("radiographs.html", **content, reading=reading, asked=asked, **words)
        return self._page("files.html", **content, unreadable=_json(case, UNREADABLE))

    async def picture(self, request: Request) -> Response:
        """A radiograph."""
        case, number = self._case(request), request.path_params["number"]
        shown = len(_reading(case)["radiographs"]) if case.has("reading.json") else 0
        if number not in map(str, range(1, shown + 1)):
            raise Refused(404, "There is nothing at this address.")
        return _file(case.folder / f"picture_{number}.png")

    async def view(self, request: Request) -> Response:
        """A report, to be read in the browser."""
        case, name = self._case(request), request.path_params["name"]
        return _file(file_of(case, name) if name in REPORTS else None, headers=_OF_REPORTS)

    async def download(self, request: Request) -> Response:
        """A file of the result, or a zip of its DICOM objects."""
        case, name = self._case(request), request.path_params["name"]
        if name not in downloads(case):
            raise Refused(404, "There is nothing at this address.")
        if path := file_of(case, name):
            return _file(path, filename=f"fewview-{name}")
        content = await run_in_threadpool(zipped, case)
        return Response(content, media_type="application/zip",
                        headers={"Content-Disposition": f'attachment; filename="fewview-{name}"'})  # fmt: skip


def _check_query(query: dict[str, str], here: Installation) -> None:
    if here.fetch_from is None or query.get("by") not in _QUERIES or not 0 < len(query.get("value", "")) <= 64:
        raise Refused(400, "Say which study to fetch: 1 to 64 characters.")


def _has_picture(case: Case, sidecar: str) -> bool:
    stem = sidecar.removesuffix(".json")
    return any(own.split(".")[0] == stem and not own.endswith(".json") for own in case.record["files"])


def _json(case: Case, name: str) -> dict[str, Any]:
    """What a step wrote; empty where it has not."""
    return read_json_object(case.folder / name) if case.has(name) else {}


def _reading(case: Case) -> dict[str, Any]:
    if not (reading := _json(case, "reading.json")):
        raise Refused(409, "The radiographs have not been read yet.")
    return reading


def _file(path: Path | None, **options: Any) -> Response:
    if path is None or not path.is_file():
        raise Refused(404, "There is nothing at this address.")
    return FileResponse(path, **options)
