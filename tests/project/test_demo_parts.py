"""What the demo prepares before it starts anything, and what it does when it is started again."""

from __future__ import annotations

import io
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.contrib.auth.models import User

from guardrails import selectors, services
from guardrails.models import ApiKey, PolicyVersion, Scope
from project.demo import access, bootstrap, ports, valkey
from project.demo import services as commands
from project.demo.access import Access
from project.demo.console import Console
from project.demo.lock import AlreadyRunning, only_one

URL = "http://127.0.0.1:8000"
STARTERS = sorted(path.stem for path in Path(services.__file__).parent.joinpath("starters").glob("*.json"))


def prepared(data_dir: Path) -> Access:
    """One start, up to the moment at which everything serves."""
    found = bootstrap.prepare(data_dir, url=URL)
    found.store(data_dir)
    return found


@pytest.mark.django_db(transaction=True)  # it closes its connections at the end
@pytest.mark.usefixtures("forgetful")
class TestPrepare:
    def test_it_works(self, tmp_path: Path) -> None:
        found = prepared(tmp_path)
        healthy = {info.name for info in selectors.policy_choices() if info.signed and info.healthy}
        assert healthy == set(STARTERS)
        admin = User.objects.get(username=found.admin_user)
        assert admin.is_superuser
        assert admin.check_password(found.admin_password)
        key = selectors.api_key_for(found.api_key)
        assert key is not None
        assert set(key.scopes) == set(Scope.values)

    def test_a_second_start_changes_nothing(self, tmp_path: Path) -> None:
        first = prepared(tmp_path)
        versions = list(PolicyVersion.objects.values_list("digest", "signature"))
        assert prepared(tmp_path) == first
        assert list(PolicyVersion.objects.values_list("digest", "signature")) == versions
        assert (ApiKey.objects.count(), User.objects.count()) == (1, 1)

    @pytest.mark.usefixtures("demo_policy")
    def test_what_the_visitor_has_published_since_stays_at_work(self, tmp_path: Path) -> None:
        prepared(tmp_path)
        edited = PolicyVersion.objects.get(policy__name="demo").document | {"description": "mine", "guardrails": []}
        version, _ = services.install(document=edited)
        prepared(tmp_path)
        assert selectors.active_policy("demo").digest == version.digest

    @pytest.mark.usefixtures("demo_policy")
    def test_a_lost_file_gives_a_new_password_and_a_new_key(self, tmp_path: Path) -> None:
        first = prepared(tmp_path)
        (tmp_path / access.FILE).unlink()
        second = prepared(tmp_path)
        assert second.api_key != first.api_key
        assert selectors.api_key_for(second.api_key) is not None
        assert User.objects.get().check_password(second.admin_password)

    @pytest.mark.usefixtures("demo_policy")
    def test_a_revoked_key_is_replaced(self, tmp_path: Path) -> None:
        first = prepared(tmp_path)
        services.revoke_api_key(key=ApiKey.objects.get())
        second = prepared(tmp_path)
        assert second.api_key != first.api_key
        assert selectors.api_key_for(second.api_key) is not None

    @pytest.mark.usefixtures("demo_policy")
    def test_a_changed_password_is_set_again_so_that_the_file_tells_the_truth(self, tmp_path: Path) -> None:
        first = prepared(tmp_path)
        user = User.objects.get()
        user.set_password("something else")
        user.save()
        second = prepared(tmp_path)
        assert second.admin_password != first.admin_password
        assert User.objects.get().check_password(second.admin_password)


ACCESS = Access(URL, "admin", "pass word", "sg_key")


def test_it_works(tmp_path: Path) -> None:
    ACCESS.store(tmp_path)
    assert access.stored(tmp_path) == ACCESS
    assert json.loads((tmp_path / "demo.json").read_text())["url"] == URL
    assert any("sg_key" in line for line in ACCESS.lines())


def test_the_file_with_the_password_is_private_even_over_a_public_one(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{}")
    (tmp_path / "demo.json").chmod(0o644)
    ACCESS.store(tmp_path)
    assert stat.S_IMODE((tmp_path / "demo.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


@pytest.mark.parametrize("content", ["", "[1]", "null", '{"url": "x"}', "\x00"])
def test_a_damaged_file_counts_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "demo.json").write_text(content)
    assert access.stored(tmp_path) is None


def test_a_data_directory_has_one_demo_at_a_time(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(AlreadyRunning), only_one(tmp_path):
        raise AssertionError("two of them")
    with only_one(tmp_path):  # and is free again afterwards
        pass


def test_a_port_that_somebody_listens_on_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(port)
        with pytest.raises(OSError, match="no free port"):
            ports.first_free(range(port, port + 1))
    assert ports.is_free(port)


def test_valkey_gets_the_same_port_again_and_never_one_for_outgoing_connections(tmp_path: Path) -> None:
    port = valkey.choose_port(tmp_path)
    assert valkey.choose_port(tmp_path) == port
    assert 1_024 < port < 32_768
    with socket.create_server(("127.0.0.1", port)):
        assert port < valkey.choose_port(tmp_path) < 32_768


async def test_valkey_is_not_ready_where_another_program_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        service, url = valkey.embedded(tmp_path, server.getsockname()[1], {})
        assert service.ready is not None
        assert not await service.ready()
    configuration = tmp_path / "valkey" / "valkey.conf"
    assert stat.S_IMODE(configuration.stat().st_mode) == 0o600
    assert url.split("@")[0].removeprefix("redis://:") in configuration.read_text()
    assert all(url.split("@")[0].removeprefix("redis://:") not in argument for argument in service.argv)


def test_the_worker_yields_to_the_web_process() -> None:
    argv = commands.worker({}).argv
    begins = argv[: argv.index(sys.executable)]
    said = subprocess.run(
        [*begins, sys.executable, "-c", "import os; print(os.nice(0))"], capture_output=True, check=True
    )
    assert int(said.stdout) == min(19, os.nice(0) + 5)
    assert sys.executable in commands.web({}, 8_000).argv[:1], "and the web process to nobody"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_every_line_says_who_wrote_it_and_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    plain, coloured = io.StringIO(), Terminal()
    for stream in (plain, coloured):
        Console(stream).line("web", "hello")
    assert plain.getvalue() == "web   | hello\n"
    assert coloured.getvalue() == "\x1b[36mweb   |\x1b[0m hello\n"
    monkeypatch.setenv("NO_COLOR", "1")
    Console(quiet := Terminal()).line("web", "hello")
    assert quiet.getvalue() == "web   | hello\n"


def test_a_reader_that_goes_away_silences_the_log_and_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    console = Console(Gone())
    console.line("web", "one")
    console.line("web", "two")
