"""OpenAI's Responses API, as Codex and the official client speak it.

wire, wire_items, wire_tools   bodies, validated       messages   items -> a chat's messages
tools   what is offered, and names back                params     body -> conversation, request
items   one item of the output and its events          writer     the reply, streamed or whole
head    what every snapshot of a response repeats      routes     the endpoints
compaction  a conversation made short     custom_format, custom_input   custom tools
shell_items  calls that need no tool      sealed   what clients carry unread
stored/  responses that are kept, and their routes
"""
