"""The program around the commands: its help, what it loads, completion, exit statuses, colors, Ctrl-C."""

import inspect
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call, message

import loc_edit
from loc_edit.cli import contents
from loc_edit.cli.contents import COMMANDS, GROUPS, help_text, load, summary
from loc_edit.cli.exits import Exit
from loc_edit.cli.parsing import TOPICS, options, parse, records, sections

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")


def defaults(name):
    return {"experiment": loc_edit.ExperimentConfig()} if name in ("run", "plan") else {}


def parsed(name, *words):
    return parse(load(name), name, words, defaults(name))


# Help


def test_the_help_of_the_program_has_every_command_in_its_group_on_one_line():
    lines = help_text(80).splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line in GROUPS] == [*GROUPS]
    for name in COMMANDS:
        [line] = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(summary(name))
        assert lines.index(line) > lines.index(next(g for g, homes in GROUPS.items() if COMMANDS[name] in homes))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_a_command_is_the_first_of_its_docstring(name):
    assert summary(name)
    assert summary(name) == inspect.getdoc(load(name)).splitlines()[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_help_begins_with_examples_that_parse(name):
    result = call(name, "--help")
    assert result.status == 0
    head, _, rest = result.out.partition("usage: ")
    examples = re.findall(r"^    loc-edit (.*)$", head, re.MULTILINE)
    assert 1 <= len(examples) <= 3
    assert re.search(r"^ options +$", rest, re.MULTILINE)
    for example in examples:
        used, *words = shlex.split(example.partition(" > ")[0])
        assert parsed(used, *words)
    assert name in {example.split()[0] for example in examples}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_description_and_at_most_one_topic(name):
    for option in options(load(name), defaults(name)):
        assert sum(option.name in names for names in TOPICS.values()) <= 1, option.name
        assert option.meaning or "help=" in str(option.kind).replace("help=None", ""), f"{name}: {option.name}"


def test_every_topic_is_about_options_that_there_are():
    known = {option.name for name in COMMANDS for option in options(load(name), defaults(name))}
    assert {name for names in TOPICS.values() for name in names} <= known


def test_options_are_shown_by_topic_whatever_record_they_are_a_field_of():
    text = call("trace", "--help").out
    boxes = dict(re.findall(r"^ ([a-z ]*options) +\n -+ \n(.*?)^ +$", text, re.DOTALL | re.MULTILINE))
    assert set(boxes) == {"options", "computation options", "model and facts options", "output options"}
    assert "--window" in boxes["computation options"]
    assert "--noise" in boxes["computation options"]
    assert "--fact " in boxes["model and facts options"]
    assert "--json" in boxes["output options"]


def test_a_record_gets_the_options_that_are_its_fields_and_keeps_the_rest():
    given = loc_edit.ExperimentConfig(facts=7, settings={"rome": {"steps": 3}})
    values = parse(load("run"), "run", ["--layers", "2", "4", "--set", "rome.clamp=6"], {"experiment": given})
    assert values["experiment"] == given.model_copy(update={"layers": (2, 4)})
    assert values["assignments"] == ("rome.clamp=6",)
    assert records(load("run"), {"experiment": given}) == {"experiment": given}
    assert parsed("trace", "--fact", "3", "--seed", "5")["source"].seed == 5


def test_no_option_of_a_record_is_hidden_by_a_parameter():
    for name in COMMANDS:
        names = [option.name for option in options(load(name), defaults(name))]
        assert len(names) == len(set(names)), name


def test_every_command_describes_what_it_raises_nowhere_in_its_help():
    assert "Raises" in sections(load("run"))
    assert "CellsFailed" not in call("run", "--help").out


def test_without_a_command_there_is_help_and_a_status_that_says_so():
    result = call()
    assert result.status == Exit.USAGE
    assert (result.out, result.err.strip()) == ("", help_text())


def test_the_version_is_told():
    assert call("--version").out == f"loc-edit {loc_edit.__version__}\n"


def test_a_command_that_does_not_exist_is_named_with_the_nearest():
    assert "command 'exprot': did you mean 'export'?" in call("exprot").err


# What is loaded


def loaded(code):
    """The names of the modules that some code loads in a process of its own."""
    program = f"import sys; before = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


def test_the_package_and_the_help_of_the_program_load_next_to_nothing():
    package = loaded("import loc_edit")
    program = loaded("from loc_edit.cli.main import main; main(['--help'])")
    heavy = {"torch", "transformers", "transformer_lens", "pandas", "numpy", "pydantic", "tyro", "rich", "argparse"}
    assert "loc_edit" in package
    assert "loc_edit.cli.main" in program
    assert not heavy & (package | program)
    assert len(package) < 60, len(package)
    assert len(program) < 100, len(program)


def test_the_help_of_the_commands_loads_nothing_that_computes():
    calls = "\n".join(f"contents.load({name!r})" for name in COMMANDS)
    names = loaded(f"from loc_edit.cli import contents, parsing\n{calls}")
    assert "loc_edit.cli.tune" in names
    assert not {"torch", "transformers", "transformer_lens", "pandas", "numpy", "matplotlib"} & names


# Completion


COMPLETE = """
loc-edit() { :; }
source ./script
_try() {
  COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
  $(complete -p loc-edit | sed 's/.* -F \\([^ ]*\\) .*/\\1/'); echo "${COMPREPLY[*]}"
}
_try loc-edit tra
_try loc-edit trace --loc
_try loc-edit run --engine ""
_try loc-edit status ru
complete -p loc-edit
"""


@pytest.mark.slow
def test_bash_completes_commands_options_choices_and_leaves_files_to_itself(here):
    (here / "script").write_text(call("completion", "bash").out)
    (here / "runs").mkdir()
    result = subprocess.run(["bash", "--norc", "-c", COMPLETE], capture_output=True, text=True, check=True)
    command, option, choices, files, registered = result.stdout.splitlines()
    assert (command, option, choices, files) == ("trace", "--localizer", "local ray", "")
    assert "-o default" in registered
    assert result.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script_with_every_command(shell):
    result = call("completion", shell)
    assert result.status == 0
    assert all(name in result.out for name in COMMANDS)


# How a command ends


@pytest.fixture
def ends(monkeypatch):
    """Makes `loc-edit doctor` end with an error."""

    def ending(error):
        def doctor():
            """Stop."""
            raise error

        monkeypatch.setattr(contents, "import_module", lambda name: type("Module", (), {"doctor": doctor}))
        doctor.__doc__ = "Stop.\n\nExamples:\n    loc-edit doctor\n"
        return call("doctor")

    return ending


def test_ctrl_c_leaves_one_line_that_says_how_to_go_on(ends):
    result = ends(KeyboardInterrupt())
    assert result.status == Exit.STOPPED + 2 == 130
    assert result.err == ("\nloc-edit: stopped; finished rows are kept, and this goes on from there: loc-edit doctor\n")
    assert result.out == ""


@pytest.mark.parametrize("error", [ValueError("so"), OSError("so"), RuntimeError("so")])
def test_an_error_takes_one_line(ends, error):
    assert message(ends(error)) == "loc-edit: so"


def test_a_package_that_is_missing_is_named(ends):
    assert "No module named 'gone'; `loc-edit doctor` says" in message(
        ends(ModuleNotFoundError("No module named 'gone'"))
    )


def test_an_error_of_the_package_itself_keeps_its_traceback(ends):
    with pytest.raises(ZeroDivisionError):
        ends(ZeroDivisionError())


def test_the_page_has_the_exit_statuses_of_the_code():
    table = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE, re.MULTILINE)
    assert table == [(str(int(status)), status.meaning) for status in Exit]


def test_the_page_has_every_command_with_examples_that_parse():
    for name in COMMANDS:
        [section] = re.findall(rf"^### {name}\n(.*?)^##", PAGE, re.MULTILINE | re.DOTALL)
        examples = re.findall(r"^loc-edit (.*?)(?: [>#|] .*)?$", section, re.MULTILINE)
        assert examples, name
        for used, *words in map(shlex.split, examples):
            assert used == name
            assert parsed(used, *words)


# Colors


def shown(monkeypatch, *, terminal, **environment):
    """What help and an error of `loc-edit` look like, on a terminal or in a pipe."""
    code = "from loc_edit.cli.main import main\nmain(['facts', '-n', '0'])\nmain(['facts', '--help'])"
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    env = {**os.environ, "TERM": "xterm-256color", **environment}
    command = [sys.executable, "-c", code]
    if not terminal:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env).stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux says so at the end
            piece = b""
        if not piece:
            break
        text += piece
    os.close(ours)
    process.wait(timeout=60)
    return text.decode()


COLOR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-7]|9[0-7])")


@pytest.mark.slow
def test_colors_are_for_terminals_and_for_those_who_want_them(monkeypatch):
    colored = shown(monkeypatch, terminal=True)
    [error] = [line for line in colored.splitlines() if "expected at least 1 fact" in line]
    assert COLOR.search(error)
    assert "\x1b" in colored.partition("usage:")[2]
    plain = shown(monkeypatch, terminal=True, NO_COLOR="1")
    assert "expected at least 1 fact" in plain
    assert not COLOR.search(plain)
    assert "\x1b" not in plain.partition("usage:")[2]
    assert "\x1b" not in shown(monkeypatch, terminal=False)
