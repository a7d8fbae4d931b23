"""Where settings come from, before they are checked.

Each function reads one kind of source and returns a `Layer`: raw values by setting,
and for each where it stood, in words. What cannot be a setting at all (an unknown
key, a file that cannot be read) becomes a `Problem`, never silence: a misspelt
setting that does nothing is worse than none.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

PREFIX = "POLAR_AGENT_"
_NESTED = "tail__"
CONFIG_VARIABLE = "POLAR_AGENT_CONFIG"
SYSTEM_CONFIG = Path("/etc/polar-agent/agent.toml")
SYSTEM_SECRETS = Path("/run/secrets")

# Polar's own names, in order of precedence.
POLAR_VARIABLES = (
    ("POLAR_ACCESS_TOKEN", "access_token"),
    ("POLAR_ENVIRONMENT", "environment"),
    ("POLAR_SERVER", "environment"),
)

# Kubernetes sets these in every container of a namespace that has a service named
# `polar-agent`; they are not meant for us.
_KUBERNETES = re.compile(r"SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend in the settings.

    Attributes:
        setting: the setting, or the unknown key.
        origin: where it stands.
        reason: what is wrong.
        hint: what to do.
    """

    setting: str
    origin: str
    reason: str
    hint: str = ""

    @property
    def subject(self) -> str:
        """The setting and where it stands; a misspelt variable is both at once."""
        return self.origin if self.origin.endswith(f" {self.setting}") else f"{self.setting} ({self.origin})"


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source says: raw values by setting, and where each stood."""

    values: dict[str, object] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def put(self, name: str, value: object, origin: str) -> None:
        """Take a value, unless this layer has one already."""
        if name not in self.values:
            self.values[name] = value
            self.origins[name] = origin


def from_overrides(overrides: Mapping[str, object], known: Collection[str], problems: list[Problem]) -> Layer:
    """Take the command line's values; None stands for an option that was not given."""
    layer = Layer()
    for name, value in overrides.items():
        if value is None:
            continue
        if name in known:
            layer.put(name, value, "command line")
        else:
            problems.append(_unknown(name, "command line", name, known))
    return layer


def from_environment(environ: Mapping[str, str], known: Collection[str], problems: list[Problem]) -> Layer:
    """Take `POLAR_AGENT_…`; an empty variable counts as not set."""
    layer = Layer()
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or variable == CONFIG_VARIABLE:
            continue
        rest = variable.removeprefix(PREFIX)
        name = rest.lower()
        if name in known and rest.isupper():
            if value.strip():
                layer.put(name, value, f"environment variable {variable}")
        elif name.startswith(_NESTED) and rest.isupper():
            if value.strip():
                _nest(layer, name.split("__"), value, f"environment variable {variable}")
        elif _KUBERNETES.fullmatch(rest) is None:
            top = name.partition("__")[0]
            problems.append(
                _unknown(top, f"environment variable {variable}", variable, known, variables=True)
            )
    return layer


def _nest(layer: Layer, parts: list[str], value: str, origin: str) -> None:
    """Take a part of a setting that is made of others."""
    name, *way, last = parts
    place = layer.values.setdefault(name, {})
    for part in way:
        place = place.setdefault(part, {}) if isinstance(place, dict) else {}
    if isinstance(place, dict):
        place[last] = value
    layer.origins.setdefault(name, origin)


def from_polar_names(environ: Mapping[str, str]) -> Layer:
    """Take the variables that Polar's own libraries use; an empty one counts as not set."""
    layer = Layer()
    for variable, name in POLAR_VARIABLES:
        value = environ.get(variable, "")
        if value.strip():
            layer.put(name, value, f"environment variable {variable}")
    return layer


def from_credentials(environ: Mapping[str, str], known: Collection[str], problems: list[Problem]) -> Layer:
    """Take systemd's credentials and Docker's secrets: files named like a setting.

    A token is taken as its file's path, so that it is read again when it changes.
    Files with other names belong to others and are left alone.
    """
    layer = Layer()
    directories = [Path(environ["CREDENTIALS_DIRECTORY"])] if environ.get("CREDENTIALS_DIRECTORY") else []
    for directory in (*directories, SYSTEM_SECRETS):
        try:
            paths = sorted(directory.iterdir())
        except OSError:
            continue  # no such directory, or none of ours
        for path in paths:
            name = path.name.lower()
            if name in ("access_token", "polar_access_token"):
                layer.put("access_token_file", str(path), f"credential {path}")
            elif name in known:
                try:
                    layer.put(name, path.read_text("utf-8").strip(), f"credential {path}")
                except (OSError, ValueError) as error:
                    problems.append(
                        Problem(
                            name,
                            f"credential {path}",
                            f"cannot be read: {_why(error)}",
                            "let the agent read it",
                        )
                    )
    return layer


def from_file(
    config: Path | None, environ: Mapping[str, str], known: Collection[str], problems: list[Problem]
) -> Layer:
    """Take the settings file: the given one, else `$POLAR_AGENT_CONFIG`, else the system's if it is there."""
    layer = Layer()
    named = environ.get(CONFIG_VARIABLE, "").strip()
    if config is not None:
        path, origin = config, "--config"
    elif named:
        path, origin = Path(named).expanduser(), f"environment variable {CONFIG_VARIABLE}"
    else:
        path, origin = SYSTEM_CONFIG, "the system's settings file"
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except (FileNotFoundError, NotADirectoryError):
        # Only the system's file may be missing: a file that somebody named was meant to be there.
        if path is not SYSTEM_CONFIG:
            hint = "correct the path, or create the file"
            problems.append(Problem(str(path), origin, "there is no such file", hint))
        return layer
    except (OSError, ValueError) as error:  # wrong TOML and wrong UTF-8 are ValueErrors
        problems.append(Problem(str(path), origin, *_unreadable(error)))
        return layer
    for name, value in document.items():
        if name in known:
            layer.put(name, value, str(path))
        else:
            problems.append(_unknown(name, str(path), name, known))
    return layer


def keep_one_token(layers: Collection[Layer], problems: list[Problem]) -> None:
    """Leave the token, or the token file, of the highest source that gives either.

    Else a token of the environment and a token file of the settings file would both
    stand, and which one is used would depend on chance. Both in one source is an error.
    """
    pair = ("access_token", "access_token_file")
    taken = False
    for layer in layers:
        given = [name for name in pair if name in layer.values]
        if taken:
            for name in given:
                del layer.values[name]
        elif len(given) == len(pair):
            problems.append(
                Problem(
                    "access_token",
                    f"{layer.origins[pair[0]]}, {layer.origins[pair[1]]}",
                    "both a token and a token file are given",
                    "keep access_token or access_token_file, not both",
                )
            )
        taken = taken or bool(given)


def _unknown(
    name: str, origin: str, written: str, known: Collection[str], *, variables: bool = False
) -> Problem:
    """Return the problem of a name that is no setting, with the nearest name that is."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    if near:
        nearest = PREFIX + near[0].upper() if variables else near[0]
        return Problem(written, origin, "is no setting", f"did you mean {nearest}? If not, remove it")
    return Problem(written, origin, "is no setting, and none is named alike", "remove it")


def _unreadable(error: OSError | ValueError) -> tuple[str, str]:
    """Return why a settings file cannot be read, and what to do."""
    if isinstance(error, tomllib.TOMLDecodeError):
        return f"is no valid TOML: {error}", "mend the file at that line"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8: there is a wrong byte at offset {error.start}", "save the file as UTF-8"
    return (
        f"cannot be read: {_why(error)}",
        "let this user read it; a token in it can move to a file of its own (access_token_file)",
    )


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
