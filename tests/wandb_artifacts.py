"""What the W&B server for tests knows of artifacts: it keeps them whole, and one with the digest of another is that other."""

import json
from dataclasses import dataclass, field
from typing import Any

AT = "2026-01-01T00:00:00Z"


@dataclass
class Artifact:
    """One version of an artifact. `files` is filled as they come, by their name in it."""

    id: str
    kind: str
    name: str
    digest: str
    metadata: dict[str, Any]
    aliases: list[str]
    state: str = "PENDING"
    files: dict[str, bytes] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        project = {"id": "p", "internalId": "p", "name": "pets", "entity": {"name": "tester"}}
        return {
            "__typename": "Artifact", "id": self.id, "artifactSequence": {"__typename": "ArtifactSequence", "name": self.name, "project": project},
            "versionIndex": 0, "artifactType": {"name": self.kind}, "description": None, "metadata": json.dumps(self.metadata),
            "ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [], "historyStep": None, "state": self.state, "size": 1,
            "digest": self.digest, "commitHash": "c", "fileCount": len(self.files), "createdAt": AT, "updatedAt": AT, "aliases": [],
        }  # fmt: skip


@dataclass
class Shelf:
    """All artifacts of a server. `asked` holds the kind of each that was handed in, also of those that were there already."""

    place: str = ""
    all: list[Artifact] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Artifact]:
        return [artifact for artifact in self.all if artifact.kind == kind and artifact.state == "COMMITTED"]

    def answer(self, query: str, told: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a query about artifacts, None to any other."""
        if "ArtifactType(" in query:
            return {"project": {"artifact": None}}
        if "ArtifactByID" in query:
            return {"artifact": self._by_id(told["id"]).to_json()}
        if "mutation CreateArtifact (" in query:
            return {"createArtifact": {"artifact": self._create(told["input"])}}
        if "mutation CreateArtifactManifest" in query:
            at = f"{self.place}/storage/artifact/{told['artifactID']}/manifest"
            return {"createArtifactManifest": {"artifactManifest": {"id": "m", "file": {"id": "f", "uploadUrl": at, "uploadHeaders": []}}}}
        if "mutation CreateArtifactFiles" in query:
            return {"createArtifactFiles": {"files": {"edges": [{"node": self._file(one)} for one in told["input"]["artifactFiles"]]}}}
        if "mutation CommitArtifact" in query:
            artifact = self._by_id(told["artifactID"])
            artifact.state = "COMMITTED"
            return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}
        return None

    def keep(self, path: str, content: bytes) -> None:
        """A file that comes to the address it was told."""
        _, _, _, number, name = path.split("/", 4)
        self._by_id(number).files[name] = content

    def _by_id(self, number: str) -> Artifact:
        return next(artifact for artifact in self.all if artifact.id == number)

    def _create(self, told: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(told["artifactTypeName"])
        name = told["artifactCollectionName"]
        made = Artifact(
            f"a{len(self.all)}", told["artifactTypeName"], name, told["digest"], json.loads(told.get("metadata") or "{}"),
            [alias["alias"] for alias in told.get("aliases") or []],
        )  # fmt: skip
        there = [one for one in self.all if (one.name, one.digest, one.state) == (name, made.digest, "COMMITTED")]
        self.all += [] if there else [made]
        found = (there or [made])[0]
        return {"id": found.id, "state": found.state, "artifactSequence": {"latestArtifact": None}}

    def _file(self, told: dict[str, Any]) -> dict[str, Any]:
        at = f"{self.place}/storage/artifact/{told['artifactID']}/{told['name']}"
        artifact = {"id": told["artifactID"]}
        return {"storagePath": told["name"], "uploadUrl": at, "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": artifact}
