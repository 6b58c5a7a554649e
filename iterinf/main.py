"""iterinf: image segmentation by iterative inference.

python -m iterinf.main --config=configs/quickstart.py --workdir=runs/quickstart

--config.key=value overrides a config key; configs/base.py lists all keys.
--mode=predict and --mode=export read the config of the workdir, not --config.
"""

import ast
import contextlib
import io
import pathlib
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from iterinf.errors import UserError
from iterinf.experiment.modes import MODES, run
from iterinf.runtime.distributed import end_on_errors, is_first, start_processes
from iterinf.runtime.files import lock_folder
from iterinf.runtime.signals import stop_on_signals
from iterinf.runtime.xla import convolve_on_all_cores, keep_compiled_programs

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file; --config.key=value overrides a key."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Output folder; an interrupted experiment resumes from it."
)
_MODE = flags.DEFINE_enum("mode", "run", MODES, "Stage to run; 'run' runs all stages.")
_BASE = pathlib.Path(__file__).parent.parent / "configs" / "base.py"  # has all keys
flags.mark_flags_as_required(["config", "workdir"])


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags and loads the config file; errors are one line."""
    words = [word.lstrip("-") for arg in argv for word in arg.split("=", 1)]
    reads_it = any(f"mode {mode}" in " ".join(words) for mode in ("predict", "export"))
    if "config" not in words and reads_it:
        argv = [argv[0], f"--config={_BASE}", *argv[1:]]
    try:
        sys.path.append(str(pathlib.Path(__file__).parent.parent))  # holds configs/
        with contextlib.redirect_stderr(io.StringIO()):  # config_flags' traceback
            rest = flags.FLAGS(argv)
        _ = _CONFIG.value.seed
        return rest
    except (AttributeError, KeyError) as error:
        reason = str(error.args[0])
        with contextlib.suppress(ValueError, SyntaxError):
            reason = str(ast.literal_eval(reason))  # top-level keys are quoted twice
        reason = reason.replace("\n", "; ")
        sys.exit(f"iterinf: unknown config key: {reason}")
    except (OSError, SyntaxError, NameError) as error:
        reason = str(error).splitlines()[-1].strip()
        sys.exit(f"iterinf: cannot load the config file: {reason}")
    except (flags.Error, TypeError, ValueError, ImportError) as error:
        sys.exit(f"iterinf: {error}")


def _run(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"iterinf: unexpected argument {argv[1]!r}; options start with --")
    logging.set_verbosity(logging.FATAL)  # Orbax and XLA; real failures are raised
    sys.unraisablehook = lambda _: None  # Orbax's threads after a failed write
    stop_on_signals()
    convolve_on_all_cores()
    workdir = pathlib.Path(str(_WORKDIR.value))
    command = shlex.join(["python", "-m", "iterinf.main", *sys.argv[1:]])
    with end_on_errors():
        _check_overrides(_MODE.value)
        keep_compiled_programs()
        start_processes(**_CONFIG.value.processes)
        writes = is_first() and _MODE.value != "predict"
        with lock_folder(workdir) if writes else contextlib.nullcontext():
            run(_CONFIG.value, workdir, _MODE.value, command)


def _check_overrides(mode: str) -> None:
    """Rejects overrides of keys that the mode reads from the workdir."""
    if mode not in ("predict", "export"):
        return
    read = (mode, "progress", "processes")
    for key in config_flags.get_override_values(flags.FLAGS["config"]):
        if key.split(".")[0] not in read:
            raise UserError(
                f"config.{key} cannot be changed with --mode={mode}, which reads it "
                f"from the workdir; only config.{', config.'.join(read)} can"
            )


def main() -> None:
    """Entry point of `python -m iterinf.main`."""
    app.run(_run, flags_parser=_parse_flags)


if __name__ == "__main__":
    main()
