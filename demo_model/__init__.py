"""The training code of the demo model. Needs the extra `train`; no part of the installed package,
like bench/.
"""
