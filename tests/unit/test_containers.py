"""Images, Kubernetes manifests and systemd units: what can be said of them without an engine, a cluster or a machine."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pathspec import PathSpec
from typer.main import get_command

from shared import VERSION
from shared.cli import app
from shared.relay.process import read_options
from tests import dockerfile
from tests.cli_world import CONFIG, KEY
from tests.dockerfile import Dockerfile, Instruction

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
IMAGES = ("relay", "serve")
ALL_DOCKERFILES = [INFRA / name / "Dockerfile" for name in IMAGES] + [INFRA / "sandbox" / "functions.Dockerfile"]
UNITS = sorted((INFRA / "systemd").glob("*.service"))


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> Dockerfile:
    return dockerfile.read(INFRA / request.param / "Dockerfile")


# --- Dockerfiles --------------------------------------------------------------------------------------------------


def test_the_base_is_an_argument_that_a_digest_can_pin(image: Dockerfile) -> None:
    assert set(image.arguments) == {"BASE", "BASE_DIGEST"}
    assert re.fullmatch(r"docker\.io/library/python:3\.1[1-3]-slim", image.arguments["BASE"])
    assert re.fullmatch(r"(sha256:[0-9a-f]{64})?", image.arguments["BASE_DIGEST"])
    assert {stage.base for stage in image.stages} == {"${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}"}


def test_what_is_installed_comes_from_a_stage_of_its_own(image: Dockerfile) -> None:
    build, final = image.stages
    assert build.name == "build"
    assert any("pip " in each.text for each in build.all("RUN"))
    assert not any("pip " in each.text for each in final.all("RUN"))
    assert [each.flags["from"] for each in final.all("COPY") if "from" in each.flags] == ["build"]


def test_nobody_is_root_and_the_number_is_known(image: Dockerfile) -> None:
    final = image.stages[-1]
    # A number, because Kubernetes' runAsNonRoot can not look names up.
    assert final.last("USER").rest == "10001:10001"
    assert "--uid 10001" in final.all("RUN")[0].text
    after = final.instructions[final.instructions.index(final.last("USER")) :]
    assert not {"RUN", "COPY"} & {each.name for each in after}


def test_the_state_is_in_a_volume_and_nothing_else_is_written(image: Dockerfile) -> None:
    final = image.stages[-1]
    (volume,) = final.all("VOLUME")
    assert f"0700 {volume.rest}" in final.all("RUN")[0].text
    assert "PYTHONDONTWRITEBYTECODE=1" in final.last("ENV").text


def test_signals_reach_the_process(image: Dockerfile) -> None:
    final = image.stages[-1]
    assert final.last("ENTRYPOINT").words
    assert final.last("STOPSIGNAL").rest == "SIGTERM"


def test_health_is_asked_with_what_the_image_has(image: Dockerfile) -> None:
    check = image.stages[-1].last("HEALTHCHECK")
    program, flag, code = check.words
    assert (program, flag) == ("python", "-c")
    ast.parse(code)
    # A proxy of the environment would be asked for the container itself.
    assert "ProxyHandler({})" in code
    limit = int(re.search(r"timeout=(\d+)", code)[1])  # type: ignore[index]
    assert limit < int(check.flags["timeout"].removesuffix("s")) < int(check.flags["interval"].removesuffix("s"))


def test_the_health_check_asks_where_the_process_answers() -> None:
    relay = dockerfile.read(INFRA / "relay" / "Dockerfile").stages[-1]
    words = relay.last("ENTRYPOINT").words
    assert f"http://{words[words.index('--http') + 1]}/health" in relay.last("HEALTHCHECK").text
    serve = dockerfile.read(INFRA / "serve" / "Dockerfile").stages[-1]
    port = option("serve", "--port").default
    assert f"http://127.0.0.1:{port}/health" in serve.last("HEALTHCHECK").text
    assert serve.last("EXPOSE").rest == str(port)


@pytest.mark.parametrize("path", ALL_DOCKERFILES, ids=lambda path: path.parent.name)
def test_nothing_is_fetched_but_by_pip(path: Path) -> None:
    for stage in dockerfile.read(path).stages:
        for each in stage.all("RUN"):
            assert not re.search(r"\b(curl|wget|apt|apt-get|sudo|chmod)\b", each.text), each.line
            assert all(
                "--no-cache-dir" in line for line in each.text.split("&&") if " install " in line and "pip" in line
            ), each.line
        for each in stage.all("ENV"):
            assert not re.search(r"(KEY|SECRET|TOKEN|PASSWORD)=", each.text), each.line


@pytest.mark.parametrize("path", ALL_DOCKERFILES, ids=lambda path: path.parent.name)
def test_each_thing_that_is_copied_is_there_and_is_sent_to_the_builder(path: Path) -> None:
    sent = sent_to_the_builder()
    for each in from_the_context(dockerfile.read(path)):
        for source in each.sources:
            place = source.rstrip("/")
            assert (ROOT / place).exists(), f"line {each.line}: {source}"
            assert any(name == place or name.startswith(f"{place}/") for name in sent), f"line {each.line}: {source}"


def test_the_builder_is_sent_no_secret_and_nothing_that_it_does_not_need() -> None:
    sent = sent_to_the_builder()
    assert {name.split("/")[0] for name in sent} == {
        "LICENSE", "README.md", "constraints.txt", "function_app.py", "host.json", "infra", "pyproject.toml",
        "requirements.txt", "shared",
    }  # fmt: skip
    assert {name for name in sent if name.startswith("infra/")} == {"infra/relay/requirements.txt"}
    left_out = ignored()
    for name in (".env", ".git/config", "shared/.env", "shared/state.db", "shared/state.db-wal", "vaultferry.db.key",
                 "shared/client.pem", "shared/vaults/backup.vault", "local.settings.json", "vaultferry.yaml",
                 "shared/__pycache__/app.cpython-312.pyc", "tests/conftest.py"):  # fmt: skip
        assert left_out.match_file(name), name


def test_the_relays_image_has_each_module_that_the_relay_imports() -> None:
    copied = {
        name
        for each in from_the_context(dockerfile.read(INFRA / "relay" / "Dockerfile"))
        for source in each.sources
        for name in (
            [source] if source.endswith(".py") else [f"{source}{path.name}" for path in (ROOT / source).glob("*.py")]
        )
    }
    needed, waiting = set(), ["shared/relay/__main__.py"]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        for module in re.findall(r"^\s*from (shared[\w.]*) import", (ROOT / name).read_text("utf-8"), re.MULTILINE):
            place = module.replace(".", "/")
            waiting.append(f"{place}.py" if (ROOT / f"{place}.py").is_file() else f"{place}/__init__.py")
    assert needed <= copied
    assert {name for name in copied if name.startswith("shared/") and not name.startswith("shared/relay/")} <= needed


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("FROM a\nADD b /\n", "ADD is not an instruction that ours have"),
        ("RUN true\nFROM a\n", "RUN stands before FROM"),
        ("FROM a\nfrom b\n", "from is not an instruction"),
        ("FROM a\nRUN one \\\n", "is never ended"),
    ],
)
def test_a_dockerfile_that_is_not_like_ours_is_told(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=problem):
        dockerfile.read(path)


def test_a_dockerfile_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(
        'ARG A=1\nFROM a AS b\nRUN one \\\n  # aside\n  --two\nCOPY --from=b --chown=1:2 x y z/\nCMD ["d", "e"]\n'
    )
    image = dockerfile.read(path)
    (stage,) = image.stages
    assert (image.arguments, stage.base, stage.name) == ({"A": "1"}, "a", "b")
    assert [each.text for each in stage.all("RUN")] == ["one --two"]
    copy = stage.last("COPY")
    assert (copy.flags, copy.sources) == ({"from": "b", "chown": "1:2"}, ["x", "y"])
    assert stage.last("CMD").words == ["d", "e"]


def from_the_context(image: Dockerfile) -> Iterator[Instruction]:
    for stage in image.stages:
        yield from (each for each in stage.all("COPY") if "from" not in each.flags)


def ignored() -> PathSpec[Any]:
    return PathSpec.from_lines("gitignore", (ROOT / ".dockerignore").read_text("utf-8").splitlines())


def sent_to_the_builder() -> set[str]:
    spec = ignored()
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    return {name for name in listed if name and not spec.match_file(name)}


# --- an image's steps, on this machine ----------------------------------------------------------------------------


class Built:
    """What a Dockerfile installs and copies, in folders of this machine."""

    def __init__(self, image: Dockerfile, folder: Path) -> None:
        self.folder = folder
        self.env = {"HOME": str(folder), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.env |= {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))
        }
        for stage in image.stages:
            self.work = folder
            for each in stage.instructions:
                self._do(each)
        self.env |= dict(
            word.split("=", 1) for word in image.stages[-1].last("ENV").text.split() if word.startswith("PYTHON")
        )
        self.env |= {
            "PATH": f"{self._here(image.stages[-1].last('ENV').text.split('PATH=')[1].split(':')[0])}:{os.defpath}"
        }

    def _here(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(opt|src|app|spool|data)\b", rf"{self.folder}/\1", text)

    def _do(self, each: Instruction) -> None:
        if each.name == "WORKDIR":
            self.work = Path(self._here(each.rest))
            self.work.mkdir(parents=True, exist_ok=True)
        elif each.name == "COPY" and "from" not in each.flags:
            target = self.work / each.rest.split()[-1]
            target.mkdir(parents=True, exist_ok=True)
            for source in each.sources:
                if (ROOT / source).is_dir():
                    unwanted = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, target, dirs_exist_ok=True, ignore=unwanted)
                else:
                    shutil.copy(ROOT / source, target)
        elif each.name == "RUN" and "useradd" not in each.text:
            self.run("sh", "-c", self._here(each.text))

    def files(self) -> set[str]:
        """All but what the volume holds."""
        names = (path.relative_to(self.folder) for path in self.folder.rglob("*"))
        return {str(name) for name in names if name.parts[0] != "state"}

    def run(self, *command: str) -> str:
        ended = subprocess.run(
            command, cwd=self.work, env=self.env, capture_output=True, text=True, timeout=600, check=False
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        return ended.stdout


def lines_until(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """What the process says, up to the line that is waited for; it is stopped after a minute without one."""
    assert process.stderr is not None
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        seen = []
        for line in process.stderr:
            seen.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"it ended without {pattern!r}: {''.join(seen)[-2000:]}")
    finally:
        timer.cancel()


def ends_well(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


@pytest.mark.real
def test_the_relay_runs_with_nothing_but_what_its_image_holds(tmp_path: Path) -> None:
    image = dockerfile.read(INFRA / "relay" / "Dockerfile")
    built = Built(image, tmp_path)
    entry = image.stages[-1].last("ENTRYPOINT").words
    before = built.files()
    built.env |= {"VAULTFERRY_COMMIT": "abc1234", "VAULTFERRY_BUILD_DATE": "2026-11-22"}
    assert built.run(*entry, "--version") == f"{VERSION} (commit abc1234, built 2026-11-22)\n"
    options = ["--listen=tcp://127.0.0.1:0", f"--spool={tmp_path}/state", "--http=127.0.0.1:0"]
    command = [*entry, *options, "--forward=http://127.0.0.1:9/audit"]
    with subprocess.Popen(command, cwd=built.work, env=built.env, stderr=subprocess.PIPE, text=True) as process:
        url = lines_until(process, r"health and metrics at (http://[\d.:]+)")[1]
        lines_until(process, "listening on")
        answer = ask_as_the_health_check_does(image, built, f"{url}/health")
        assert (answer["version"], answer["commit"], answer["build_date"]) == (VERSION, "abc1234", "2026-11-22")
        ends_well(process)
    # The root file system of a container is read-only.
    assert built.files() == before


@pytest.mark.real
def test_serve_runs_with_nothing_but_what_its_image_holds(tmp_path: Path) -> None:
    image = dockerfile.read(INFRA / "serve" / "Dockerfile")
    built = Built(image, tmp_path)
    final = image.stages[-1]
    entry = final.last("ENTRYPOINT").words
    built.work = tmp_path / "state"
    built.work.mkdir()
    (tmp_path / "vaultferry.yaml").write_text(CONFIG, "utf-8")
    built.env |= {
        "VAULTFERRY_COMMIT": "abc1234", "VAULTFERRY_BUILD_DATE": "2026-11-22", "VAULTFERRY_API_KEY": "k" * 32,
        "VAULTFERRY_CONFIG": f"{tmp_path}/vaultferry.yaml", "VAULTFERRY_STORE": f"sqlite:///{tmp_path}/state/state.db",
        "FILE_KEY": KEY,
    }  # fmt: skip
    before = built.files()
    assert built.run(*entry, "--version") == f"vaultferry {VERSION} (commit abc1234, built 2026-11-22)\n"
    assert "uvloop" in built.run("python", "-c", "import uvloop; print(uvloop.__name__)")
    command = [*entry, *final.last("CMD").words, "--port", "0"]
    with subprocess.Popen(
        command, cwd=built.work, env=built.env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        port = lines_until(process, r"http://[\d.]+:(\d+)")[1]
        answer = ask_as_the_health_check_does(image, built, f"http://127.0.0.1:{port}/health")
        assert (answer["version"], answer["commit"], answer["build_date"]) == (VERSION, "abc1234", "2026-11-22")
        ends_well(process)
    # The root file system of a container is read-only.
    assert built.files() == before


def ask_as_the_health_check_does(image: Dockerfile, built: Built, url: str) -> Any:
    program, flag, code = image.stages[-1].last("HEALTHCHECK").words
    code, changed = re.subn(r"http://127\.0\.0\.1:\d+/health", url, code)
    assert changed == 1
    built.env["http_proxy"] = "http://127.0.0.1:9"
    built.run(program, flag, code)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=30) as response:
        return json.load(response)


# --- compose ------------------------------------------------------------------------------------------------------


def test_the_compose_file_runs_serve_read_only_and_for_this_machine_alone() -> None:
    folder = INFRA / "serve"
    service = yaml.safe_load((folder / "compose.yaml").read_text("utf-8"))["services"]["serve"]
    assert (folder / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    image = dockerfile.read(folder / "Dockerfile").stages[-1]
    for name, value in service["environment"].items():
        assert f"{name}={value}" in image.last("ENV").text.split()
    assert f"data:{image.last('VOLUME').rest}" in service["volumes"]


# --- Kubernetes ---------------------------------------------------------------------------------------------------


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((INFRA / "kubernetes" / name).read_text("utf-8")))


def serve_deployment() -> dict[str, Any]:
    (found,) = (each for each in documents("serve.yaml") if each["kind"] == "Deployment")
    return found


def relay_pod() -> dict[str, Any]:
    (patch,) = documents("relay-sidecar.yaml")
    pod: dict[str, Any] = patch["spec"]["template"]["spec"]
    return pod


def containers() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Ours, each with its pod."""
    serve = serve_deployment()["spec"]["template"]["spec"]
    relay = relay_pod()
    return [("serve", serve["containers"][0], serve), ("relay", relay["containers"][1], relay)]


@pytest.mark.parametrize(
    ("name", "container", "pod"), containers(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_pods_are_such_as_the_restricted_standard_admits(
    name: str, container: Mapping[str, Any], pod: Mapping[str, Any]
) -> None:
    # https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    security = {**pod["securityContext"], **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == 10001
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["image"].partition(":")[2] == VERSION
    assert container["resources"]["limits"]["memory"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
    assert not any("hostPath" in volume for volume in volumes.values())


def test_two_serves_never_open_one_file() -> None:
    spec = serve_deployment()["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (claim,) = (each for each in documents("serve.yaml") if each["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    pod = spec["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    paths = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    env = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert paths[str(Path(env["VAULTFERRY_STORE"].removeprefix("sqlite:///")).parent)] == "data"
    assert paths[str(Path(env["VAULTFERRY_CONFIG"]).parent)] == "config"


def test_serves_parts_find_each_other() -> None:
    deployment = serve_deployment()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    (service,) = (each for each in documents("serve.yaml") if each["kind"] == "Service")
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {port["name"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    (account,) = (each for each in documents("serve.yaml") if each["kind"] == "ServiceAccount")
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]


def test_the_environment_of_serve_is_what_it_was_given() -> None:
    # https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    assert serve_deployment()["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_no_credential_stands_in_a_manifest() -> None:
    serve, relay = (container for _, container, _ in containers())
    assert serve["envFrom"] == [{"secretRef": {"name": "vaultferry"}}]
    for each in (*serve["env"], *relay["env"]):
        assert each["name"].endswith("_FILE") or not re.search("KEY|SECRET|TOKEN", each["name"])


def test_vault_and_the_relay_share_one_socket_and_a_group() -> None:
    pod = relay_pod()
    vault, relay = pod["containers"]
    (socket,) = (address.removeprefix("--listen=") for address in relay["args"] if address.startswith("--listen="))
    folder = str(Path(socket.removeprefix("unix://").partition("?")[0]).parent)
    for container in (vault, relay):
        assert {"name": "vaultferry-socket", "mountPath": folder} in container["volumeMounts"]
    # A folder of this group hands its group on, so what is open to the group is open to Vault.
    assert pod["securityContext"]["fsGroup"]
    assert socket.endswith("?mode=0660")


def test_no_probe_of_the_relay_takes_vault_out_of_service() -> None:
    relay = relay_pod()["containers"][1]
    assert {key for key in relay if key.endswith("Probe")} == {"livenessProbe"}
    assert "httpGet" not in relay["livenessProbe"]


def test_the_arguments_in_manifests_are_such_as_the_programs_take() -> None:
    serve, relay = (container for _, container, _ in containers())
    check_arguments("serve", serve["args"][1:])
    check_arguments("relay", relay["args"])
    mounts = [mount["mountPath"] for mount in relay["volumeMounts"]]
    for each in relay["env"]:
        assert any(each["value"].startswith(f"{mount}/") for mount in mounts)


# --- systemd ------------------------------------------------------------------------------------------------------


def unit(path: Path) -> configparser.ConfigParser:
    # A name may stand there twice, which adds to a list; the last one will do here.
    parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text("utf-8"))
    return parser


def test_there_is_a_unit_for_each_process() -> None:
    assert [path.stem for path in UNITS] == ["vaultferry-relay", "vaultferry-serve"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_name_commands_and_options_that_there_are(path: Path) -> None:
    program, command, *arguments = shlex.split(unit(path)["Service"]["ExecStart"])
    assert program == "/opt/vaultferry/bin/vaultferry"
    check_arguments(command, [each.replace("${FORWARD}", "https://app.example/audit") for each in arguments])


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_units_are_hardened_and_write_to_their_own_folder_alone(path: Path) -> None:
    service = unit(path)["Service"]
    for name in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictNamespaces",
                 "ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups", "RestrictSUIDSGID"):  # fmt: skip
        assert service[name] == "yes", name
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["WorkingDirectory"] == f"%S/{service['StateDirectory']}"
    assert service["StateDirectoryMode"] == "0700"
    assert service["RestartPreventExitStatus"] == "2"


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_credentials_are_files_that_systemd_hands_over(path: Path) -> None:
    text = path.read_text("utf-8")
    loaded = set(re.findall(r"^LoadCredential=([^:]+):/etc/vaultferry/\1$", text, re.MULTILINE))
    assert set(re.findall(r"%d/(\S+)", text)) == loaded
    for assignment in shlex.split(unit(path)["Service"]["Environment"]):
        name = assignment.partition("=")[0]
        assert name.endswith("_FILE") or not re.search("KEY|SECRET|TOKEN", name)


# --- the command line ---------------------------------------------------------------------------------------------


def option(command: str, name: str) -> Any:
    (found,) = (each for each in get_command(app).commands[command].params if name in each.opts)  # type: ignore[attr-defined]
    return found


def check_arguments(command: str, arguments: list[str]) -> None:
    """Fails for what the command would not take."""
    given = get_command(app).commands[command].make_context(command, list(arguments))  # type: ignore[attr-defined]
    if command == "relay":
        values = {name: given.params[name] for name in ("listen", "forward", "spool", "vault", "http")}
        read_options(**values, env={})
