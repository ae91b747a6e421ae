"""Write a trained model as a folder for transformers and vLLM.

python -m dwrl_jax.export --workdir=runs/tiny --output=exports/tiny

Any devices will do. The parameters are spread over those of this host, or of several hosts that all run the command.
"""

from dwrl_jax.core.terminal import say
from dwrl_jax.models import hf
from dwrl_jax.settings.commandline import WORKDIR, Flag, command, folder, parse_flags, start
from dwrl_jax.workdir.model import FORMATS, export

FLAGS = {
    "workdir": WORKDIR,
    "output": Flag("exports/tiny", "the folder to write, which must not exist", required=True, read=folder),
    "checkpoint": Flag("best", "last, best or the number of a step", default="last"),
    "dtype": Flag("bfloat16", "of the weights, else the starting model's", choices=hf.DTYPES),
    "format": Flag("peft", "a whole model, or a run's adapters alone", default=FORMATS[0], choices=FORMATS),
    "start": Flag("models/base", "the model of a run with adapters, if it is no longer where it was"),
}


@command
def main(arguments: list[str] | None = None) -> None:
    given = parse_flags(arguments, FLAGS, __doc__)
    start()
    export(given.workdir, given.output, given.checkpoint, given.dtype, given.format, given.start)
    say(given.output)


if __name__ == "__main__":
    main()
