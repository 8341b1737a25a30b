"""Masked LM and next sentence prediction (Devlin et al. 2018, arXiv:1810.04805, 3.1).

Class 1 is a pair whose second part is from another document.
"""

from bertgpt.training.objectives import paired

make = paired.make
