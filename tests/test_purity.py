"""Imports run one way; what decides is pure: no clock, no chance, no input or output, nothing that differs by process.

Each message says where it is and what to do. An exception stands here by name, with its reason.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.source import ALL, PRODUCT, ROOT, called, calls, files, imports, name, tree

# codecs <- agents, analytics <- streams <- infra
MAY_IMPORT = {
    "codecs": {"codecs"},
    "analytics": {"codecs", "analytics"},
    "agents": {"codecs", "agents"},
    "streams": {"codecs", "agents", "analytics", "streams"},
    "infra": {"codecs", "agents", "analytics", "streams", "infra"},
}
IMPORTS_BY_NAME = {
    (
        "agents/ranking.py",
        "analytics",
    ): "what match ranks by is what was learned: it takes the views as arguments",
    ("agents/ladder.py", "analytics"): "its rungs are how much of what was learned is to be had",
}
# who may bring in what: path prefixes, with the reason
CLIENTS = {
    "faust": {"streams/shell/": "the only place that knows Faust"},
    "mode": {"streams/shell/": "Faust's own base"},
    "aiokafka": {
        "streams/shell/": "reads and writes the broker for all processors",
        "agents/sdk/runner.py": "an agent's service is a program of its own",
        "agents/sdk/client.py": "a caller is a program of its own",
        "agents/sdk/outbox.py": "an agent's service is a program of its own",
        "agents/sdk/connection.py": "an agent's service is a program of its own",
        "agents/sdk/refusals.py": "says why a broker would not have a client",
        "infra/": "the edge of the machine",
    },
    "psycopg": {"infra/": "the only place that knows SQL's client"},
    "random": {
        "streams/simulated_log.py": "the seeded scheduler of the simulator",
        "infra/demo/": "the seeded demo",
        "infra/local/host.py": "free ports",
        "agents/sdk/outbox.py": "waits between retries, so that services do not retry together",
    },
    "time": {
        "streams/shell/": "ticks, gathering, time-outs of the process",
        "agents/sdk/": "heartbeats and deadlines of a real service",
        "agents/builtin/": "measures the CPU time of its work",
        "infra/": "the edge of the machine",
    },
    "datetime": {
        "codecs/json.py": "ISO 8601 text of given times; no clock",
        "infra/": "the edge of the machine",
    },
    "uuid": {
        "agents/sdk/client.py": "an id for a request whose caller gave none",
        "infra/": "names of topics, groups, clusters",
    },
    "secrets": {"infra/": "makes the key of the tokens once"},
}
BANNED_MODULES = ("pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml")
# calls that read a clock in words that depend on the machine
CLOCKS = {
    "datetime.now": {
        "infra/retention.py": "the default of the injected clock",
        "infra/security/certificates.py": "the default of the injected clock",
        "infra/cli/dead_letters.py": "what `--since 2h` is counted from",
        "infra/cli/shadow.py": "what `--from 2h` is counted from",
    },
    "datetime.utcnow": {},
}
BANNED_CALLS = (
    "eval", "exec", "__import__", "importlib.import_module", "import_module", "os.system", "os.popen",
    "pickle.load", "pickle.loads", "yaml.load",
)  # fmt: skip
CALLS_BY_NAME = {
    ("tests/test_docs.py", "exec"): "runs the snippets of our own pages",
    ("agents/builtin/compressors.py", "__import__"): "the demo's codecs, by names that stand there",
}

# what decides: everything below the shell and beside the SDK. It may import this and nothing else
PURE = ("codecs", "agents", "analytics", "streams")
IMPURE = ("streams/shell/", "agents/sdk/", "agents/builtin/", "agents/__init__.py")
LIBRARIES = {
    "__future__", "aos", "array", "base64", "collections", "dataclasses", "enum", "functools", "google_crc32c",
    "hashlib", "hdbscan", "heapq", "hmac", "itertools", "json", "math", "msgspec", "numpy", "polars", "pyarrow",
    "re", "river", "struct", "typing", "zlib",
}  # fmt: skip
LIBRARIES_BY_NAME = {
    ("codecs/json.py", "datetime"): "ISO 8601 text of given times; no clock",
    ("codecs/render.py", "pathlib"): "a command: writes pages, no processor",
    ("streams/describe.py", "pathlib"): "a command: writes a page, no processor",
    ("streams/simulated_log.py", "random"): "the seeded scheduler of the simulator",
    ("analytics/beliefs.py", "urllib"): "quotes names in keys: urllib.parse, no network",
}
# built in and not a function of what is given: the world outside, and numbers that differ from process to process
WORLD = ("open", "print", "input", "breakpoint", "hash")
SETS_BY_NAME = {
    ("agents/registry_rows.py", "{agent.cell for agent in values}"): "fills a dict that is asked by key",
    ("analytics/mining.py", "set(one.members)"): "counted, then sorted",
}


def pure_files() -> list[Path]:
    return [path for path in files(*PURE) if not name(path).startswith(IMPURE)]


def test_imports_run_one_way() -> None:
    wrong, used = [], set()
    for path in files(*PRODUCT):
        layer = name(path).split("/")[0]
        for module, line in imports(path):
            if module.startswith("."):
                wrong.append(f"{name(path)}:{line} imports {module}: name it whole, aos.{layer}…")
            if not module.startswith("aos."):
                continue
            target = module.split(".")[1]
            if target in MAY_IMPORT[layer] or target not in PRODUCT:
                continue
            if (name(path), target) in IMPORTS_BY_NAME:
                used.add((name(path), target))
            else:
                wrong.append(f"{name(path)}:{line} imports {module}; {layer} may import {MAY_IMPORT[layer]}")
    assert not wrong, "\n".join(wrong)
    assert used == set(IMPORTS_BY_NAME), "an exception nobody needs any more"


def test_clients_clocks_and_chance_are_where_they_are_named() -> None:
    wrong = []
    for path in files(*PRODUCT):
        for module, line in imports(path):
            allowed = CLIENTS.get(module.split(".")[0])
            if allowed is not None and not name(path).startswith(tuple(allowed)):
                wrong.append(
                    f"{name(path)}:{line} imports {module}: `now` and `seed` are arguments of a step, clients are "
                    f"for {sorted(allowed)}"
                )
    assert not wrong, "\n".join(wrong)


def test_what_decides_imports_only_what_computes() -> None:
    """A new name here is looked at by somebody: no clock, chance, file, socket, process, thread or log comes in."""
    wrong, used = [], set()
    for path in pure_files():
        for module, line in imports(path):
            top = module.split(".")[0]
            if (name(path), top) in LIBRARIES_BY_NAME:
                used.add((name(path), top))
            elif top not in LIBRARIES or module.startswith(("aos.streams.shell", "aos.agents.sdk")):
                wrong.append(
                    f"{name(path)}:{line} imports {module}: a step computes; the shell does the rest"
                )
    assert not wrong, "\n".join(wrong)
    assert used == set(LIBRARIES_BY_NAME), "an exception nobody needs any more"


def test_what_decides_is_a_function_of_what_it_is_given() -> None:
    """`hash` of a text and the order of a set of texts differ from process to process: a replay would differ."""
    wrong, used = [], set()
    for path in pure_files():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in WORLD:
                wrong.append(f"{name(path)}:{node.lineno} calls {node.func.id}")
            for walked in _walked(node):
                if (name(path), ast.unparse(walked)) in SETS_BY_NAME:
                    used.add((name(path), ast.unparse(walked)))
                else:
                    wrong.append(
                        f"{name(path)}:{walked.lineno} walks a set: sorted({ast.unparse(walked)}) or dict.fromkeys"
                    )
    assert not wrong, "\n".join(wrong)
    assert used == set(SETS_BY_NAME), "an exception nobody needs any more"


def _walked(node: ast.AST) -> list[ast.expr]:
    """The set whose order shows in what a loop, comprehension or conversion makes."""
    over: list[ast.expr] = []
    if isinstance(node, (ast.For, ast.comprehension)):
        over = [node.iter]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        over = node.args if node.func.id in ("list", "tuple", "enumerate", "iter", "map", "zip") else []
    made = ("set", "frozenset")
    return [
        one
        for one in over
        if isinstance(one, (ast.Set, ast.SetComp))
        or (isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in made)
    ]


def test_numpys_generators_are_seeded() -> None:
    """A generator without a seed is chance in the core, and so are numpy's global functions."""
    wrong = [
        f"{name(path)}:{node.lineno} {ast.unparse(node)}"
        for path in files(*PURE)
        for node in calls(path)
        if ast.unparse(node.func).startswith(("np.random.", "numpy.random."))
        if called(node) != "random.default_rng" or not (node.args or node.keywords)
    ]
    assert not wrong, "\n".join(wrong)


def test_nobody_evaluates_text_unpickles_or_reads_a_clock_in_passing() -> None:
    wrong, used = [], set()
    for path in files(*ALL):
        for module, line in imports(path):
            if module.split(".")[0] in BANNED_MODULES:
                wrong.append(f"{name(path)}:{line} imports {module}: Arrow or JSON instead")
        for node in calls(path):
            call = called(node)
            if (name(path), call) in CALLS_BY_NAME:
                used.add((name(path), call))
            elif call in BANNED_CALLS:
                wrong.append(f"{name(path)}:{node.lineno} calls {call}")
            if any(keyword.arg == "shell" for keyword in node.keywords) and call.startswith("subprocess."):
                wrong.append(f"{name(path)}:{node.lineno} asks a shell: give a list of words")
            if name(path).startswith(PRODUCT) and call in CLOCKS and name(path) not in CLOCKS[call]:
                wrong.append(f"{name(path)}:{node.lineno} calls {call}: pass the time in")
    assert not wrong, "\n".join(wrong)
    assert used == set(CALLS_BY_NAME), "an exception nobody needs any more"


def test_every_exception_by_name_is_a_file_that_is_there() -> None:
    named = {place for allowed in (*CLIENTS.values(), *CLOCKS.values()) for place in allowed}
    for exceptions in (IMPORTS_BY_NAME, LIBRARIES_BY_NAME, SETS_BY_NAME, CALLS_BY_NAME):
        named |= {path for path, _ in exceptions}
    named |= set(IMPURE)
    assert not [place for place in named if not (ROOT / place).exists()]
