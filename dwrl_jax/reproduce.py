"""Methods side by side: python -m dwrl_jax.reproduce --suite=tiny --workdir=runs/suite"""

from dwrl_jax.suites.cells import main

if __name__ == "__main__":
    main()
