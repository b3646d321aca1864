"""`python -m ilora`: what `torchrun -m ilora run ...` starts."""

from ilora.cli import main

main()
