"""Write report.html, one page about a run: python -m dwrl_jax.report --workdir=runs/x"""

from dwrl_jax.reporting.page import main

if __name__ == "__main__":
    main()
