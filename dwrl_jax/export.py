"""Write a trained model for transformers and vLLM: python -m dwrl_jax.export --workdir=runs/x --output=DIR"""

from dwrl_jax.workdir.model import main

if __name__ == "__main__":
    main()
