"""A W&B server for tests, on 127.0.0.1: one that keeps what it is sent, or one that fails in a way of its own."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from wandb_artifacts import Shelf

KEY = "c" * 40


@dataclass
class Server:
    """What has come in. `history` holds a run's rows in the order of their arrival, by the run's id."""

    failure: str = ""
    """"": none; "no artifacts": it knows nothing of those; "refuses": every request is forbidden; "500"; "nonsense"; "hangs": accepts and never answers; "hangs later": after the start."""
    port: int = 0
    requests: list[str] = field(default_factory=list)
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The variables of the last UpsertBucket, by the run's id."""
    summary: dict[str, dict[str, Any]] = field(default_factory=dict)
    exits: dict[str, list[int]] = field(default_factory=dict)
    sweep: list[dict[str, Any]] = field(default_factory=list)
    """What is left of a sweep, for `wandb agent`: id and parameters of each run to come."""
    command: list[str] = field(default_factory=list)
    """What the agent starts."""
    reports: list[dict[str, Any]] = field(default_factory=list)
    """The variables of each upsertView."""
    raw: list[str] = field(default_factory=list)
    """The bodies of all requests."""
    shelf: Shelf = field(default_factory=Shelf)

    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.port}", "WANDB_API_KEY": KEY}

    def steps(self, run: str) -> list[int]:
        return [row["_step"] for row in self.history.get(run, [])]

    def answer(self, path: str, content: bytes) -> tuple[int, str]:
        body = content.decode(errors="replace")
        self.requests.append(path)
        self.raw.append(body)
        started = bool(self.runs)
        if self.failure == "hangs" or (self.failure == "hangs later" and started and "file_stream" in path):
            time.sleep(600)
        if self.failure == "refuses":
            return 401, json.dumps({"errors": [{"message": "permission denied"}]})
        if self.failure in ("500", "nonsense"):
            return (500, "broken") if self.failure == "500" else (200, "<html>hello</html>")
        if path.endswith("/file_stream"):
            return 200, json.dumps(self._stream(path.split("/")[-2], json.loads(body)))
        if path.endswith("/graphql"):
            asked = json.loads(body)
            if self.failure == "no artifacts" and "rtifact" in asked["query"]:
                return 200, json.dumps({"data": {}})
            return 200, json.dumps({"data": self._graphql(asked["query"], asked.get("variables") or {})})
        if path.startswith("/storage/artifact/"):
            self.shelf.keep(path, content)
        return (200, "") if path.startswith("/storage/") else (404, "{}")

    def _stream(self, run: str, sent: dict[str, Any]) -> dict[str, Any]:
        files = sent.get("files") or {}
        if told := files.get("wandb-history.jsonl"):
            rows = self.history.setdefault(run, [])
            assert told["offset"] == len(rows), f"a gap or an overlap: row {told['offset']} comes, {len(rows)} are there"
            rows += [json.loads(line) for line in told["content"]]
        if told := files.get("wandb-summary.json"):
            for line in told["content"]:
                self.summary[run] = json.loads(line)
        if "exitcode" in sent:
            self.exits.setdefault(run, []).append(sent["exitcode"])
        return {}

    def _graphql(self, query: str, told: dict[str, Any]) -> dict[str, Any]:
        if about_artifacts := self.shelf.answer(query, told):
            return about_artifacts
        if "RunResumeStatus" in query:
            return {
                "model": {
                    "id": "p",
                    "name": told["project"],
                    "entity": {"id": "e", "name": "tester"},
                    "bucket": self._resumed(told["name"]),
                }
            }
        if "query Runs(" in query:
            return {"project": self._listed(told) if told["project"] in self._projects() else None}
        if "RunFullHistory" in query:
            assert told["samples"] >= len(self.history.get(told["name"], [])), "a real server would pick some"
            return {"project": {"run": {"history": [json.dumps(row) for row in self.history.get(told["name"], [])]}}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "p", "internalId": 1}}
        if "GetProjects" in query:
            edges = [
                {
                    "cursor": name,
                    "node": {"id": "p", "name": name, "entityName": "tester", "createdAt": "", "isBenchmark": False, "user": None},
                }
                for name in self._projects()
            ]
            return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}
        if "upsertView" in query:
            self.reports.append(told)
            project = {"id": "p", "name": told["projectName"], "entityName": told["entityName"]}
            view = {**told, "id": f"report{len(self.reports)}", "project": project, "updatedAt": "2026-11-22T10:00:00Z"}
            return {"upsertView": {"view": view, "inserted": True}}
        if "UpsertBucket" in query:
            there = told["name"] in self.runs
            self.runs[told["name"]] = told = {
                **self.runs.get(told["name"], {}),
                **{name: value for name, value in told.items() if value is not None},
            }
            project = {"id": "p", "name": told["project"], "entity": {"id": "e", "name": "tester"}}
            bucket = {"id": "b", "name": told["name"], "displayName": told.get("displayName"), "sweepName": None, "project": project}
            return {
                "upsertBucket": {"bucket": {**bucket, "historyLineCount": len(self.history.get(told["name"], []))}, "inserted": not there}
            }
        if "CreateRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"http://127.0.0.1:{self.port}/storage/{name}"} for name in told["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "SweepWithRuns" in query:
            return {
                "project": {"sweep": {"id": "s", "name": "sweep1", "config": json.dumps({"command": self.command}), "runs": {"edges": []}}}
            }
        if "CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "a"}}}
        if "agentHeartbeat" in query:
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(self._commands(json.loads(told["runState"])))}}
        if "viewer" in query:
            return {"viewer": {"id": "v", "entity": "tester", "username": "tester", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def _projects(self) -> set[str]:
        return {run["project"] for run in self.runs.values()}

    def _listed(self, told: dict[str, Any]) -> dict[str, Any]:
        """What the public API asks for: a page of the runs that meet the filters, oldest first."""
        wanted = [item for part in json.loads(told["filters"]).get("$and", []) for item in part.items()]
        nodes = [node for node in map(self._node, self.runs) if node["project"] == told["project"]]
        nodes = [node for node in nodes if all(value in node[key] if key == "tags" else node[key] == value for key, value in wanted)]
        first = int(told.get("cursor") or 0)
        page = nodes[first : first + told["perPage"]]
        edges = [{"node": node, "cursor": str(first + place)} for place, node in enumerate(page, 1)]
        more = first + len(page) < len(nodes)
        return {"internalId": 1, "runCount": len(nodes), "readOnly": True, "runs": {"edges": edges, "pageInfo": {"hasNextPage": more}}}

    def _node(self, run: str) -> dict[str, Any]:
        told = self.runs[run]
        state = {None: "running", 0: "finished"}.get(next(reversed(self.exits.get(run, [])), None), "failed")
        return {
            "projectId": "1", "id": "b", "name": run, "project": told["project"], "displayName": told.get("displayName"), "sweepName": None,
            "state": state, "config": told.get("config") or "{}", "group": told.get("groupName"), "jobType": told.get("jobType"),
            "tags": told.get("tags") or [], "commit": told.get("commit"), "readOnly": True, "createdAt": "2026-11-22T09:00:00Z",
            "heartbeatAt": "2026-11-22T10:00:00Z", "description": None, "notes": told.get("notes"), "systemMetrics": "{}",
            "summaryMetrics": json.dumps(self.summary.get(run, {})), "historyLineCount": len(self.history.get(run, [])),
            "user": {"name": "tester", "username": "tester"}, "historyKeys": None,
        }  # fmt: skip

    def _commands(self, running: dict[str, bool]) -> list[dict[str, Any]]:
        """One run after the other, then the end."""
        if running:
            return []
        if not self.sweep:
            return [{"type": "exit"}]
        run = self.sweep.pop(0)
        return [
            {"type": "run", "run_id": run["id"], "program": "", "args": {name: {"value": value} for name, value in run["args"].items()}}
        ]

    def _resumed(self, run: str) -> dict[str, Any] | None:
        if run not in self.runs:
            return None
        rows = self.history.get(run, [])
        return {
            "id": "b", "name": run, "displayName": self.runs[run].get("displayName"), "config": self.runs[run].get("config") or "{}",
            "summaryMetrics": json.dumps(self.summary.get(run, {})), "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]", "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0, "tags": [], "wandbConfig": json.dumps({"t": {}}),
        }  # fmt: skip


class Listening(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *about: Any) -> None:
        """Who asks may give up, and is gone when the answer comes: nothing that a test's screen should show."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*about)


@contextmanager
def serve(failure: str = "", **settings: Any) -> Iterator[Server]:
    server = Server(failure, **settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            code, text = server.answer(self.path, body)
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_PUT = do_POST  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    listening = Listening(("127.0.0.1", 0), Handler)
    server.port = listening.server_port
    server.shelf.place = f"http://127.0.0.1:{server.port}"
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
