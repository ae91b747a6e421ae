"""Train a generative preference model: python -m dwrl_jax.train --config=configs/tiny.py --workdir=runs/tiny"""

from dwrl_jax.training.run import main

if __name__ == "__main__":
    main()
