"""Nothing is let in: altered bundles, pickles that are programs, requests that no browser makes."""

from __future__ import annotations

import os
import pickle
import random
import socket
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.numpy import save
from torch import nn

from glmd_runtime import Detector, backends, calibration, enroll, verify_calibration
from glmd_runtime import bundle as bundles
from glmd_runtime import reference as references
from glmd_runtime.backends.fake import FakeBackend
from glmd_runtime.bundle import SEAL, Bundle, write_bundle
from glmd_runtime.calibration import CalibrationSpec, prototypes_to_bytes
from glmd_runtime.enroll import EnrolledSpec
from glmd_runtime.errors import BundleError, CheckpointError
from glmd_runtime.manifest import MANIFEST
from glmd_runtime.metrics import Metrics
from glmd_runtime.verify_calibration import PcbReference
from glmd_runtime.web.server import WebHandler
from glmd_train.state_dict import read_state_dict
from glmd_train.training.run_folder import RunFolder
from tests import tiny
from tests.runtime.test_view import HERE, TOKEN, Site
from tests.trust.audit import FILES, PROGRAMS, audited
from tests.trust.hostile_pickles import CALLING, CALLS, CONTAINERS, drawn, known_attacks, payload, state_of_ours
from tests.trust.hostile_requests import HOST, PATIENCE, REFUSALS, answers, dripped, is_known, request
from tests.trust.parts import Figures, Form, Part, require

# Whatever makes something of a bundle's bytes, as the modules that call it know it.
DESERIALISERS = (
    (backends, "load"),
    (bundles, "parse_json"),
    (references, "read_npz"),
    (verify_calibration, "read_npz"),
    (calibration, "load"),
    (enroll, "load"),
    (np, "load"),
)

ANSWERING = "Thread-"  # how the names of the threads begin that answer requests
PAGES = ("/", "/api/state", "/api/streams/0/picture", "/api/streams/0/snapshot.png")
DRIPPED = "given up while they dripped"


def flipped_bytes(form: Form) -> Figures:
    """One change at a time, in every file of a bundle that has every kind of file."""
    rng, wanted = random.Random(0), {"short": 400, "long": 30_000}[form]
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch, watched() as used:
        bundle = everything(Path(scratch) / "t.glmd")
        used.clear()
        Detector(bundle.path, backend="onnxruntime").close()
        loaded = {"backends.load": 2, "bundle.parse_json": 2, "calibration.load": 1, "enroll.load": 1}
        require(dict(used) == loaded, f"the whole bundle must be loaded, which is seen here; got {dict(used)}")
        files = {path.name: path.read_bytes() for path in bundle.path.iterdir()}
        every_bit = [(SEAL, 8 * place + bit) for place in range(len(files[SEAL])) for bit in range(8)]
        for name, place in every_bit if form == "long" else every_bit[:: len(every_bit) // 40]:
            refuse(bundle.path, name, flipped(files[name], place), used, "a flipped bit of the seal")
            done["a flipped bit of the seal"] += 1
        for _ in range(wanted):
            name = rng.choice(sorted(files))
            kind, content = altered(files[name], files, rng)
            refuse(bundle.path, name, content, used, f"{name} with {kind}")
            done[kind] += 1
        Detector(bundle.path, backend="onnxruntime").close()
    return {"files": len(files), "changes": sum(done.values()), **dict(sorted(done.items())), "accepted": 0}


def refuse(folder: Path, name: str, content: bytes, used: Counter[str], said: str) -> None:
    """Require that the bundle is refused with this content of a file, and nothing of it used but a sealed manifest."""
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    used.clear()
    try:
        Detector(folder, backend="onnxruntime")
        require(False, f"{said}: expected BundleError, got a Detector")
    except BundleError:
        allowed = {} if name in (MANIFEST, SEAL) else {"bundle.parse_json": 1}
        require(dict(used) == allowed, f"{said}: nothing may be loaded; got {dict(used)}")
    (folder / name).write_bytes(whole)


def altered(content: bytes, others: Mapping[str, bytes], rng: random.Random) -> tuple[str, bytes]:
    """(what was done, the content afterwards), which is another one."""
    if content and rng.random() < 0.7:
        return "a flipped bit", flipped(content, rng.randrange(8 * len(content)))
    changes: dict[str, Callable[[], bytes]] = {
        "an end cut off": lambda: content[: rng.randrange(len(content) or 1)],
        "bytes appended": lambda: content + rng.randbytes(rng.randint(1, 9)),
        "the content of another file": lambda: others[rng.choice(sorted(others))],
        "a byte replaced": lambda: content[:-1] + bytes([rng.randrange(256)]),
    }
    kind = rng.choice(sorted(changes))
    changed = changes[kind]()
    return (kind, changed) if changed != content else altered(content, others, rng)


def flipped(content: bytes, place: int) -> bytes:
    """Bit number `place` the other way round."""
    one = bytearray(content)
    one[place // 8] ^= 1 << place % 8
    return bytes(one)


def everything(path: Path) -> Bundle:
    """A bundle with every kind of file; no engine of it is ever read here but by the fake."""
    graph = tiny.graph_spec()
    graph = replace(graph, outputs={**graph.outputs, "features": (1, 4, 3)})
    manifest = replace(
        tiny.manifest(),
        graph=graph,
        engines={"model.onnx": "fp32", "openvino.fp32.xml": "fp32", "tensorrt_rtx.fp16.engine": "fp16"},
        calibration=CalibrationSpec(),
        enrolled=EnrolledSpec(("fox",), (0.5,)),
    )
    numbers = np.random.default_rng(0)
    pcb = PcbReference(np.ones(1, np.int64), np.ones((1, 4), np.float32), np.ones((1, 3), np.float32))
    enrolled = {"weights": np.ones((1, 3), np.float32), "biases": np.zeros(1, np.float32)}
    engines = ("openvino.fp32.xml", "openvino.fp32.bin", "tensorrt_rtx.fp16.engine", "tensorrt_rtx.fp16.engine.json")
    files: dict[str, bytes | Path] = {
        "model.onnx": tiny.model(),
        "pcb.onnx": tiny.model(),
        **{name: numbers.bytes(3000) for name in engines},
        "prototypes.safetensors": prototypes_to_bytes(numbers.normal(size=(2, 3)).astype(np.float32)),
        "pcb_reference.npz": pcb.to_bytes(),
        "enrolled.safetensors": save(enrolled),
        "reference.npz": tiny.reference().to_bytes(),
        "verify.json": b'{"status": "passed", "rows": []}',
    }
    return write_bundle(path, manifest, files)


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """How often each of DESERIALISERS was called; engines that are loaded are fakes."""
    used: Counter[str] = Counter()

    def counting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            used[name] += 1
            return FakeBackend(tiny.graph_spec(), [[]]) if real is backends.load else real(*arguments, **named)

        return call

    with ExitStack() as stack:
        for module, name in DESERIALISERS:
            known_as = f"{module.__name__.removeprefix('glmd_runtime.')}.{name}"
            stack.enter_context(mock.patch.object(module, name, counting(known_as, getattr(module, name))))
        yield used


def malicious_pickles(form: Form) -> Figures:
    """By both readers of checkpoints and the one of a run's state; whatever a program calls, nothing happens."""
    rng, wanted = random.Random(0), {"short": 250, "long": 20_000}[form]
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        mark, run = Path(scratch) / "mark", RunFolder(Path(scratch))
        must_be_dangerous(mark)
        read_state_dict(whole_file(Path(scratch)))  # so that what is imported for reading is
        before = state_of_ours()
        with audited(PROGRAMS) as seen:
            for kind, suffix, content in attacks(rng, wanted, mark):
                path = Path(scratch) / f"weights{suffix}"
                path.write_bytes(content)
                refused(lambda path=path: read_state_dict(path), kind)
                run.last.write_bytes(content)
                refused(lambda: run.restore(nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)])), kind)
                require(not mark.exists() and not seen, f"{kind}: nothing may happen; got {dict(seen)}")
                done[kind] += 1
        require(state_of_ours() == before, "nothing of ours may be altered for the files to come")
    return {"files": sum(done.values()), **dict(sorted(done.items())), "callables": len(CALLS), "executed": 0}


def attacks(rng: random.Random, wanted: int, mark: Path) -> Iterator[tuple[str, str, bytes]]:
    for program in known_attacks(mark):
        for kind, (suffix, wrap) in CONTAINERS.items():
            yield kind, suffix, wrap(program)
    for _ in range(wanted):
        yield drawn(rng, mark)


def must_be_dangerous(mark: Path) -> None:
    """The control: Python's own unpickler does what these programs say."""
    for form in CALLING:
        pickle.loads(payload(("os", "system", ("touch MARK",)), form, 3, mark))
        require(mark.exists(), f"{form} must execute its call when it is unpickled; it did not")
        mark.unlink()


def whole_file(folder: Path) -> Path:
    torch.save({"w": torch.zeros(2)}, folder / "whole.pth")
    return folder / "whole.pth"


def refused(read: Callable[[], object], kind: str) -> None:
    """Require one clear error."""
    try:
        read()
    except CheckpointError as error:
        require(len(str(error)) < 1000 and "weights_only=False" not in str(error), f"{kind}: {error}")
    else:
        require(False, f"{kind}: expected CheckpointError, got weights")


def hostile_requests(form: Form) -> Figures:
    """To the page, the page with a token, and the numbers, between connections that are left half open."""
    rng, wanted = random.Random(0), {"short": 900, "long": 30_000}[form]
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        sites = [Site(tiny.bundle(Path(scratch) / "t.glmd").path), Site(Path(scratch) / "t.glmd", token=TOKEN)]
        for site in sites:
            stack.callback(site.close)
            site.show()
        metrics = stack.enter_context(Metrics(sites[0].pipeline.streams, HERE))
        ports = {site.view.port: site.view._server.pages for site in sites} | {metrics.port: {}}
        must_be_seen(lambda: alive(sites, metrics))  # now all that is imported for answering is
        with audited(FILES, thread=ANSWERING) as opened:
            held: deque[socket.socket] = deque(maxlen=40)
            for _ in range(wanted):
                port = rng.choice(list(ports))
                asked, content = request(rng, port)
                if rng.random() < 0.1:
                    held.append(socket.create_connection((HOST, port), timeout=PATIENCE))
                    held[-1].sendall(content[: rng.randrange(60)])
                for status, body in answers(port, content):
                    judge(asked, status, body, ports[port], port == sites[1].view.port)
                    done[str(status or "without a head")] += 1
            done[DRIPPED] = sum(dripping(port) for port in ports)
            alive(sites, metrics)
        require(not opened, f"no request may reach a file; got {dict(opened)}")
        require(sites[0].detector.score_threshold is None, "no request may set the threshold")
    answered = {f"answers {status}": done[status] for status in sorted(done) if status != DRIPPED}
    return {"requests": wanted, **answered, DRIPPED: done[DRIPPED], "files opened": 0}


def must_be_seen(answer: Callable[[], int]) -> None:
    """The control: a file that is opened with each of so many answers is seen each time."""

    def opens_a_file(*_: object) -> None:
        open(os.devnull).close()

    with mock.patch.object(WebHandler, "log_message", opens_a_file), audited(FILES, thread=ANSWERING) as seen:
        answers = answer()
    count = seen[f"open {(os.devnull,)}"]
    require(count == answers, f"each of {answers} answers opened a file; {count} were seen: {dict(seen)}")


def dripping(port: int) -> int:
    """How many requests were given up that went on a byte at a time: in their first lines, and in what they post."""
    own = f"Host: {HOST}\r\nAuthorization: Bearer {TOKEN}\r\n"
    post = f"POST /api/threshold HTTP/1.1\r\n{own}Content-Type: application/json\r\nContent-Length: 900\r\n\r\n"
    beginnings = (f"GET / HTTP/1.1\r\n{own}X: ", post)
    with mock.patch.object(WebHandler, "timeout", 0.5):
        for beginning in beginnings:
            said = dripped(HOST, port, beginning.encode())
            require(said == b"", f"a request that drips must be given up without an answer; got {said[:80]!r}")
    return len(beginnings)


def judge(asked: str, status: int, body: bytes, pages: Mapping[str, bytes], wants_token: bool) -> None:
    """Require a page that everybody knows, or a refusal."""
    said = f"{asked[:80]!r}: got {status} and {body[:80]!r}"
    require(b"Traceback" not in body and b"root:" not in body and b"def " not in body, said)
    refused = status in (0, *REFUSALS) and len(body) < 200
    require(refused or (status in (0, 200) and is_known(body, pages) and not wants_token), said)


def alive(sites: list[Site], metrics: Metrics) -> int:
    """Require that sound requests are answered. Returns: how many."""
    token = {"Authorization": f"Bearer {TOKEN}"}
    for site, own in zip(sites, ({}, token), strict=True):
        for path in PAGES:
            status = site.ask(path, own)[0].status
            require(status == 200, f"{path} must be answered; got {status}")
    [(status, _)] = answers(metrics.port, f"GET /metrics HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
    require(status == 200, f"the numbers must be answered; got {status}")
    return len(sites) * len(PAGES) + 1


PARTS: list[Part] = [
    Part("construction.flipped_bytes", "an altered bundle is refused before anything of it is loaded", flipped_bytes),
    Part("construction.malicious_pickles", "a checkpoint that is a program runs nothing", malicious_pickles),
    Part(
        "construction.hostile_requests",
        "of page and numbers only what is known is answered, and who never ends is given up",
        hostile_requests,
    ),
]
