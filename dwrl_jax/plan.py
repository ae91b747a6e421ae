"""What a run would need: python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8 [--json=FILE]"""

from dwrl_jax.planning.plan import main

if __name__ == "__main__":
    main()
