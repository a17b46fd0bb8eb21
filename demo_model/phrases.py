"""Fixed phrases of the generated conversations: small talk with its answers, and the parts of
stories and filler.
"""

from __future__ import annotations


def _split(text: str, separator: str | None = None) -> list[str]:
    return text.split(separator)


HELLO = "Hello! How can I help you today?"
WHO = "I am the erllama demo model, a very small language model. I can chat, remember facts and call tools."
ABILITIES = "I can remember facts that you tell me, add small numbers, write lists and short stories, answer as JSON and call tools."
UNKNOWN_ANSWER = "I do not know that. I am only a very small demo model."
NOT_TOLD_ANSWER = "I do not know. You have not told me."

# question variants -> the one answer
SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Hello!", "Hello", "Hello.", "Hi", "Hi!", "Hey", "Hello there!", "Good morning!", "Good evening!", "Hey there", "Hi there!",
      "Hello, how are you?", "Hello world"), HELLO),
    (("Who are you?", "What are you?", "What is your name?", "What's your name?", "Tell me about yourself.", "Hi, who are you?",
      "Which model are you?", "Introduce yourself.", "Are you a robot?", "Are you a human?", "Hello! Who are you?"), WHO),
    (("What can you do?", "How can you help me?", "What can you help me with?", "Help", "Help me.", "What can I ask you?",
      "What do you know?", "Can you help me?", "Hello! What can you do?", "What can you do for me?"), ABILITIES),
    (("How are you?", "How are you today?", "How are you doing?", "How is it going?"),
     "I am fine, thank you. How can I help you?"),
    (("Say hello.", "Say hello", "Say hello!", "Say hi.", "Please say hello.", "Say hello in one word.", "Say hi!"), "Hello!"),
    (("Thank you.", "Thanks!", "Thanks.", "Thank you!", "Thank you very much.", "Great, thanks!"), "You are welcome!"),
    (("Goodbye.", "Bye!", "Bye.", "Good night.", "See you later.", "Goodbye!"), "Goodbye! Have a nice day."),
    (("Okay.", "OK", "Good.", "I see.", "Nice.", "Great!", "Cool"), "Is there anything else I can do for you?"),
    (("Who made you?", "Who created you?", "Who trained you?"), "I was trained from scratch as part of the erllama project."),
    (("Tell me a joke.", "Tell me a joke", "Do you know a joke?", "Make me laugh."),
     "Why did the cow cross the road? To get to the other side!"),
    (("What is the meaning of life?",), "Some say that it is 42."),
    (("Are you there?", "Ping", "Test", "This is a test.", "Are you ready?"), "Yes, I am here."),
    (("What colour is the sky?", "What color is the sky?", "Why is the sky blue?"), "The sky is blue."),
    (("Write a poem.", "Write a haiku.", "Write a short poem."), "The river is calm,\nthe moon is over the hill,\nthe night is quiet."),
    (("Say yes.", "Say yes"), "Yes"),
    (("Say no.", "Say no"), "No"),
)  # fmt: skip

CAPITALS = [
    pair.split("/")
    for pair in _split(
        "France/Paris Germany/Berlin Italy/Rome Spain/Madrid Japan/Tokyo England/London Portugal/Lisbon Austria/Vienna "
        "Greece/Athens Norway/Oslo Denmark/Copenhagen Finland/Helsinki Ireland/Dublin Egypt/Cairo Kenya/Nairobi Peru/Lima "
        "China/Beijing Poland/Warsaw Belgium/Brussels Russia/Moscow"
    )
]

UNKNOWN_QUESTIONS = _split(
    "What is {thing}?|What is a {thing}?|Who was {thing}?|Explain {thing}.|How do I {thing}?|Why is {thing} so important?|When was "
    "{thing} born?|What do you think about {thing}?|Write an essay about {thing}.|Translate {thing} into German.|How many {thing} are "
    "there in the world?|Can you explain {thing} to me?|Who invented {thing}?|Write a program for {thing}.|What is the best {thing}?|How "
    "does {thing} work?|What happened to {thing}?|Do you like {thing}?|Is {thing} true?|Tell me about {thing}.",
    "|",
)

COMMON_WORDS = _split(
    "about above across after again against air all almost along also always and another answer any area around ask away back "
    "because been before began being below between big book both boy build but by call came can carry change children city close "
    "come could country cut day did different do does down draw each early earth eat end enough even every example eye face family "
    "far father feet few find fire first follow food for form found four from full gave get girl give go good great group grow had "
    "half hand hard has have he head hear help her here high him his home house how idea if important in into is it its just keep "
    "kind know land large last later learn leave left let letter life light like line list little live long look made make man many "
    "may mean men might mile money more most mother mountain move much music must name near need never new next night not now number "
    "of off often old on once one only open or other our out over own page paper part people person picture place plant play point "
    "press problem put question quick read real right river run said same saw say school sea second see seem sentence set she should "
    "show side simple small so some song soon sound spell stand start state still stop story study such system take talk teach tell "
    "than that the their them then there these they thing think this those three through time to together too took tree try turn two "
    "under until up us use very voice walk want was watch water way we well went were what when where which while white who why will "
    "wind with without wood word work world would write year you young your server memory model token cache cluster request data "
    "value error file message user network machine process table index engine block layer price market report project result"
)

STORY_HEROES = _split(
    "dragon robot princess king queen knight wizard girl boy child cloud star tree river moon ghost pirate"
)
STORY_ADJECTIVES = _split("small old young brave clever happy lonely curious quiet kind")
STORY_SETTINGS = _split("forest village valley garden castle town field harbour mountain island")
STORY_FINDS = _split("golden key|silver ring|old map|red lamp|small book|blue stone|secret door|long letter", "|")
STORY_MOODS = _split("happy proud glad thankful")

SCENES = _split(
    "the river|the old mill|the road to the harbour|the market|the library|the train|the garden|the bridge|the school|the "
    "bakery|the museum|the lake|the tower|the station|the little shop|the castle",
    "|",
)
STATES = _split(
    "was quiet|was full of people|was closed|looked empty|was open until late|was painted again|smelled of rain", "|"
)
TIMES = _split(
    "in the morning|in the evening|all day|last week|before the storm|after the holiday|during the winter|at noon", "|"
)
REASONS = _split(
    "because it was cold|because the snow had melted|although nobody knew why|and everyone was glad|but the wind was strong|so "
    "the children stayed at home|and the music played on|while the birds were singing",
    "|",
)
