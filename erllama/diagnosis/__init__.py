"""Why a prompt had to be computed: where it left what was known of earlier ones, and what did that.
From outside `PromptLog` is used and what `record.py` defines.
"""
