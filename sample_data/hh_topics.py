# ruff: noqa: E501  (one topic a line)
"""The small world that `make_hh_rlhf.py` talks about: topics, their facts, and how to ask.

Each line of a table is one topic: `name | fact | fact | ...`, one fact for each of the
table's slots. A wrong answer is a right one for another topic of the same table. Everything
here was written for this project.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One askable property: questions ({n} is the topic) and statements ({v} is the fact)."""

    questions: tuple[str, ...]
    statements: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Topics of one kind. `facts[topic][s]` answers slot s."""

    slots: tuple[Slot, ...]
    facts: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Harm:
    """A request to refuse: what is asked, whom it hurts, and a kinder way forward."""

    request: str
    hurt: str
    instead: str


def _rows(text: str) -> dict[str, tuple[str, ...]]:
    rows = [tuple(cell.strip() for cell in line.split("|")) for line in text.strip().splitlines()]
    return {row[0]: row[1:] for row in rows}


ANIMALS = Table(
    (
        Slot(
            (
                "What does {n} eat?",
                "What is the usual food of {n}?",
                "What should I know about the diet of {n}?",
            ),
            (
                "As a rule {n} eats {v}.",
                "The usual food of {n} is {v}.",
                "Most of the time {n} lives on {v}.",
            ),
        ),
        Slot(
            (
                "Where does {n} live?",
                "In what kind of place would I find {n}?",
                "What is the home of {n} like?",
            ),
            (
                "You can find {n} in {v}.",
                "The natural home of {n} is {v}.",
                "In the wild {n} lives in {v}.",
            ),
        ),
        Slot(
            ("What kind of animal is {n}?", "Which group of animals does {n} belong to?"),
            ("In fact {n} is {v}.", "Scientists count {n} as {v}.", "By its body plan {n} is {v}."),
        ),
        Slot(
            ("What is the young of {n} called?", "What do you call a baby of {n}?"),
            ("The young of {n} is called {v}.", "A baby of {n} has its own name: {v}."),
        ),
    ),
    _rows("""
an otter | fish and crabs | rivers and rocky coasts | a mammal | a pup
a koala | eucalyptus leaves | the forests of Australia | a marsupial | a joey
a penguin | krill and small fish | cold southern seas | a bird that cannot fly | a chick
a red fox | mice, berries and beetles | woods and city parks | a mammal of the dog family | a kit
a barn owl | voles and shrews | old barns and open fields | a bird of prey | an owlet
a giant panda | bamboo shoots | the mountains of China | a bear | a cub
a honey bee | nectar and pollen | hives and hollow trees | an insect | a larva
a hedgehog | slugs and worms | gardens and hedges | a spiny mammal | a hoglet
a camel | dry grass and thorny plants | deserts of Asia and Africa | a hoofed mammal | a calf
a sea turtle | jellyfish and sea grass | warm oceans | a reptile | a hatchling
a frog | flies and spiders | ponds and wet meadows | an amphibian | a tadpole
a kangaroo | grass and shrubs | the plains of Australia | a pouched marsupial | a young joey
a beaver | bark and water plants | lodges built in streams | a rodent | a kitten
a dolphin | fish and squid | coastal seas | a toothed whale | a calf of the sea
an octopus | crabs and clams | dens on the sea floor | a mollusc | a paralarva
a swan | pond weed | lakes and slow rivers | a water bird | a cygnet
a wolf | deer and elk | northern forests and tundra | a wild dog | a pup of the pack
a giraffe | acacia leaves | the African savanna | the tallest mammal | a tall calf
a gecko | crickets and moths | warm walls and rocks | a lizard | a tiny hatchling
a salmon | insects and small fish | clean rivers and the open sea | a fish | a fry
an eagle | rabbits and fish | cliffs and tall trees | a large bird of prey | an eaglet
a squirrel | nuts and seeds | tree holes and leaf nests | a climbing rodent | a kit of the trees
a bat | moths and midges | caves and attics | a flying mammal | a bat pup
a goat | leaves and twigs | dry hills and farms | a farm animal with hooves | a kid
a sheep | short grass | pastures | a woolly farm animal | a lamb
a horse | hay and oats | stables and grassland | a hoofed animal with one toe | a foal
a duck | duckweed and snails | ponds and marshes | a swimming bird | a duckling
a spider | flies caught in a web | corners and bushes | an arachnid | a spiderling
a shark | fish and seals | the open ocean | a fish with a skeleton of cartilage | a shark pup
a moose | willow twigs | boggy northern forests | the largest deer | a long-legged calf
a crocodile | fish and gazelles | tropical rivers | an armoured reptile | a crocodile hatchling
a butterfly | flower nectar | sunny meadows | a winged insect | a caterpillar
a snail | lettuce and algae | damp gardens | a soft animal with a shell | a snail hatchling
a llama | mountain grass | the high Andes | a relative of the camel | a cria
a seal | herring and cod | icy coasts | a sea mammal with flippers | a white pup
"""),
)

COUNTRIES = Table(
    (
        Slot(
            (
                "What is the capital of {n}?",
                "Which city is the capital of {n}?",
                "Where does the government of {n} sit?",
            ),
            (
                "The capital of {n} is {v}.",
                "The government of {n} sits in {v}.",
                "{v} is the capital of {n}.",
            ),
        ),
        Slot(
            ("Where is {n}?", "In which part of the world is {n}?"),
            ("On the map {n} lies in {v}.", "You will find {n} in {v}."),
        ),
        Slot(
            ("Which language is spoken in {n}?", "What language should I learn for a trip to {n}?"),
            ("The main language of {n} is {v}.", "Most people in {n} speak {v}."),
        ),
        Slot(
            ("What should I eat in {n}?", "Which dish is typical of {n}?"),
            (
                "A dish to try in {n} is {v}.",
                "Many visitors to {n} enjoy {v}.",
                "Cooks in {n} are proud of {v}.",
            ),
        ),
    ),
    _rows("""
France | Paris | western Europe | French | onion soup
Spain | Madrid | south-western Europe | Spanish | a potato omelette
Italy | Rome | southern Europe | Italian | fresh pasta
Germany | Berlin | central Europe | German | sausages with cabbage
Poland | Warsaw | eastern Europe | Polish | filled dumplings
Greece | Athens | the Balkans | Greek | a salad with feta
Norway | Oslo | Scandinavia | Norwegian | cured salmon
Sweden | Stockholm | northern Europe | Swedish | meatballs with lingonberries
Finland | Helsinki | the far north of Europe | Finnish | rye bread and fish
Portugal | Lisbon | the Atlantic edge of Europe | Portuguese | grilled sardines
Ireland | Dublin | an island west of Britain | English and Irish | lamb stew
Hungary | Budapest | the Danube basin | Hungarian | goulash
Austria | Vienna | the eastern Alps | Austrian German | breaded veal
Turkey | Ankara | the bridge of Europe and Asia | Turkish | kebab with rice
Egypt | Cairo | north-eastern Africa | Arabic | beans with garlic
Morocco | Rabat | north-western Africa | Arabic and Berber | a slow tagine
Kenya | Nairobi | eastern Africa | Swahili and English | maize porridge with greens
Ethiopia | Addis Ababa | the Horn of Africa | Amharic | sour flatbread with stew
Ghana | Accra | western Africa | English and Twi | spicy tomato rice
Japan | Tokyo | eastern Asia | Japanese | sushi and noodle soup
China | Beijing | the east of Asia | Mandarin | steamed buns
India | New Delhi | southern Asia | Hindi and English | lentil curry
Thailand | Bangkok | south-eastern Asia | Thai | fried rice noodles
Vietnam | Hanoi | the coast of south-eastern Asia | Vietnamese | beef noodle soup
Indonesia | Jakarta | islands near the equator | Indonesian | fried rice with egg
South Korea | Seoul | the Korean peninsula | Korean | spiced fermented cabbage
Nepal | Kathmandu | the Himalaya | Nepali | lentils with rice
Iran | Tehran | western Asia | Persian | saffron rice
Canada | Ottawa | the north of America | English and French | fries with gravy and cheese
Mexico | Mexico City | the south of North America | Mexican Spanish | corn tacos
Cuba | Havana | the Caribbean | Cuban Spanish | black beans and rice
Brazil | Brasilia | the largest part of South America | Brazilian Portuguese | black bean stew
Argentina | Buenos Aires | the south of South America | Argentine Spanish | grilled beef
Peru | Lima | the Pacific side of South America | Spanish and Quechua | raw fish in lime
Chile | Santiago | a long strip along the Andes | Chilean Spanish | corn pie
Australia | Canberra | the south of the Pacific | Australian English | barbecued prawns
New Zealand | Wellington | islands far south in the Pacific | English and Maori | roast lamb
"""),
)

DISHES = Table(
    (
        Slot(
            ("What goes into {n}?", "What do I need to make {n}?", "Which ingredients are in {n}?"),
            ("For {n} you need {v}.", "The heart of {n} is {v}.", "You make {n} from {v}."),
        ),
        Slot(
            ("How do I cook {n}?", "What is the right way to prepare {n}?"),
            ("To prepare {n}, {v}.", "The key step for {n} is simple: {v}."),
        ),
        Slot(
            ("What goes well with {n}?", "What should I serve with {n}?"),
            ("I would serve {n} with {v}.", "A good partner for {n} is {v}."),
        ),
    ),
    _rows("""
pesto | basil, pine nuts and olive oil | pound everything in a mortar | pasta
guacamole | ripe avocado, lime and onion | mash it with a fork | corn chips
an omelette | eggs and a little butter | keep the pan hot and fold it early | a green salad
tomato soup | tomatoes, onion and stock | simmer it and blend it smooth | toasted cheese bread
pancakes | flour, milk and eggs | rest the batter and fry thin rounds | maple syrup
hummus | chickpeas, tahini and lemon | blend it until it is creamy | warm flatbread
apple pie | apples, cinnamon and pastry | bake it until the crust is golden | vanilla ice cream
risotto | short rice, wine and broth | stir in the broth one ladle at a time | grated parmesan
mashed potatoes | floury potatoes, milk and butter | boil, drain and crush them while hot | gravy
a roast chicken | a whole bird, salt and thyme | roast it breast up and let it rest | roasted carrots
fried rice | cold cooked rice, egg and peas | toss it in a very hot wok | soy sauce
lentil curry | red lentils, ginger and cumin | simmer it until the lentils fall apart | plain rice
a fruit salad | melon, grapes and orange | cut the fruit small and chill it | yoghurt
vegetable stew | beans, squash and peppers | cook it slowly with the lid on | crusty bread
lemonade | lemons, sugar and cold water | dissolve the sugar before adding ice | mint leaves
bread | flour, water, yeast and salt | knead it well and let it rise twice | salted butter
chocolate mousse | dark chocolate and egg whites | fold in the foam gently | raspberries
coleslaw | white cabbage, carrot and mayonnaise | shred it finely and let it stand | grilled pork
porridge | rolled oats and milk | stir it over low heat | honey and walnuts
fish cakes | cod, potato and parsley | shape small rounds and fry them | tartar sauce
a cheese sauce | butter, flour, milk and cheddar | whisk it so that no lumps form | steamed cauliflower
stuffed peppers | peppers, rice and minced beef | fill them and bake them covered | sour cream
chicken broth | bones, celery and leek | simmer it for hours without boiling | fine noodles
a berry jam | berries and the same weight of sugar | boil it until a drop sets | fresh scones
pizza | dough, tomato and mozzarella | bake it on the hottest shelf | rocket leaves
green tea | tea leaves and water below the boil | steep it for two minutes | almond biscuits
ginger biscuits | flour, ginger and treacle | bake them until the edges crisp | a glass of milk
rice pudding | round rice, milk and vanilla | bake it slowly under a skin | stewed plums
"""),
)

PLANTS = Table(
    (
        Slot(
            ("How much light does {n} need?", "Where should I put {n}?"),
            ("For light {n} wants {v}.", "The best place for {n} has {v}."),
        ),
        Slot(
            ("How often should I water {n}?", "How much water does {n} want?"),
            ("Water {n} {v}.", "It is enough to water {n} {v}."),
        ),
        Slot(
            ("When should I plant {n}?", "What is the right season to plant {n}?"),
            ("The time to plant {n} is {v}.", "Gardeners plant {n} in {v}."),
        ),
        Slot(
            ("What pest bothers {n}?", "What should I watch out for with {n}?"),
            ("With {n}, watch out for {v}.", "The usual trouble of {n} is {v}."),
        ),
    ),
    _rows("""
a tomato plant | full sun | deeply twice a week | late spring | leaf blight
a fern | soft shade | whenever the soil feels barely damp | early autumn | dry brown tips
a cactus | a bright south window | once in three weeks | the warm months | rot at the base
lavender | sun and dry air | rarely once it is settled | mid spring | wet feet in winter
basil | a warm sunny sill | a little every morning | early summer | slugs and cold nights
a rose bush | six hours of sun | once a week at the root | late autumn | aphids
a lettuce | cool half shade | lightly every day | early spring | slugs
garlic | an open sunny bed | hardly at all after May | October | rust on the leaves
a strawberry | sun with some shelter | every second day in fruit | August | birds
an orchid | bright light without direct sun | with a short bath once a week | a time after flowering | root rot
a peace lily | low indirect light | when the leaves begin to droop | any month indoors | brown edges from lime
mint | sun or part shade | often, for it likes damp soil | March or April | roots that run everywhere
a lemon tree | a bright cool room in winter | when the top soil is dry | May | scale insects
a potato | open ground in sun | well while tubers swell | April | beetles
a tulip | spring sun | only in dry springs | November | squirrels that dig up bulbs
a sunflower | the sunniest wall | generously in bud | May, after frost | snails on seedlings
an apple tree | an open airy spot | well in its first summers | the leafless season | codling moth
a bonsai | gentle morning sun | daily in summer | the start of spring | drying out
a hydrangea | light shade | plenty in hot weeks | spring or autumn | frost on the buds
rosemary | heat and full sun | sparingly | the middle of spring | cold wet soil
a carrot | loose soil in sun | evenly so roots do not split | March to June | carrot fly
a spider plant | bright shade | weekly, less in winter | any time of year | salt in tap water
a pumpkin | a warm sunny heap | with a full can every second day | the end of May | mildew
a bean plant | a sunny row with poles | well when in flower | the middle of May | black bean aphid
a blueberry | sun and acid soil | with rain water twice a week | autumn | yellow leaves from lime
"""),
)

TOOLS = Table(
    (
        Slot(
            ("What is {n} for?", "What do people use {n} for?", "Why would I want {n}?"),
            (
                "People use {n} for {v}.",
                "The purpose of {n} is {v}.",
                "You would reach for {n} when it comes to {v}.",
            ),
        ),
        Slot(
            ("How do I look after {n}?", "How should I store {n}?"),
            ("To look after {n}, {v}.", "Your {n0} will last if you {v}."),
        ),
        Slot(
            ("How do I use {n} safely?", "What is the danger with {n}?"),
            ("For safety with {n}, {v}.", "Before you start with {n}, {v}."),
        ),
    ),
    _rows("""
a hacksaw | cutting metal bars | loosen the blade after work | clamp the piece and push slowly
a chisel | shaping wood | hone the edge on a stone | keep both hands behind the edge
a spirit level | checking that a shelf is straight | keep it in its sleeve | mind where you rest it on a ladder
a torque wrench | tightening bolts to a set force | wind it back to zero | pull smoothly and never with a pipe
a soldering iron | joining wires | tin the tip before you switch it off | work with a window open
a sewing machine | stitching cloth | oil it and brush out lint | keep fingers away from the needle
a wheelbarrow | moving soil | pump the tyre and dry the tray | lift with your knees
a telescope | looking at planets | cap the lens and keep it dry | never point it at the sun
a microscope | seeing tiny cells | cover it against dust | lower the stage before you change the lens
a lawn mower | cutting grass | clean the deck and change the oil | clear stones and wear firm shoes
a kettle | boiling water | remove the lime with vinegar | do not fill it above the mark
a pressure cooker | cooking beans fast | check the rubber seal | let the steam out before opening it
a drill | making holes | keep the bits sorted and dry | wear glasses and tie back hair
a hammer | driving nails | tighten a loose head | look at the nail and not at the hammer
a compass | finding north | keep it away from magnets | do not rely on it near iron
a thermometer | measuring heat | wash it and keep it upright | do not heat it beyond its scale
a bicycle pump | filling tyres | grease the seal once a year | stop at the pressure on the tyre
an axe | splitting logs | oil the handle and cover the blade | stand with your feet apart
a paint roller | covering walls | wash it before the paint dries | air the room
a stapler | binding sheets of paper | use staples of the right size | keep thumbs off the plate
a fire extinguisher | putting out small fires | have it checked every year | keep your back to the exit
a rice cooker | steaming rice | wipe the plate under the bowl | keep your face away from the vent
a ladder | reaching high places | store it flat and dry | set it at a steady angle
a glue gun | fixing light parts | let it cool on its stand | do not touch the melted drop
"""),
)

PROBLEMS = Table(
    (
        Slot(
            ("How do I deal with {n}?", "What can I do about {n}?", "Please help me with {n}."),
            (
                "To deal with {n}, {v}.",
                "The first thing to try with {n}: {v}.",
                "What helps against {n} is this: {v}.",
            ),
        ),
        Slot(
            ("What causes {n}?", "Why do I have {n}?"),
            ("The usual cause of {n} is {v}.", "Most often the source of {n} is {v}."),
        ),
        Slot(
            ("How can I prevent {n}?", "How do I keep {n} from coming back?"),
            ("To prevent {n}, {v}.", "If you want no more of {n}, {v}."),
        ),
    ),
    _rows("""
a slow computer | close programs you do not use | too many programs at startup | keep some of the disk free
a flat bicycle tyre | patch the inner tube | glass or a thorn | keep the tyre well pumped
a red wine stain | dab it with cold water and salt | a spilled glass | keep a cloth within reach
a blocked sink | use a plunger and hot water | fat and food scraps | put a strainer over the drain
a squeaky door | put a drop of oil on the hinge | dry metal in the hinge | oil it each spring
a dripping tap | change the washer | a worn rubber washer | do not force the handle
mould on the wall | wipe it off and air the room | damp air on a cold wall | heat evenly and open windows
a cracked phone screen | back up your data and ask a repair shop | a fall on a hard floor | use a case
weak wifi | move the router to the middle of the home | thick walls and distance | keep it clear of metal
burnt rice | soak the pan with soda | too little water and high heat | turn the heat down early
a stuck zip | rub a pencil along the teeth | cloth caught in the slider | close it slowly
ants in the kitchen | wipe their trail with vinegar | crumbs and sugar | keep food in closed jars
a noisy fridge | level its feet | a shelf or a foot that rattles | leave a gap behind it
dull knives | draw them over a whetstone | glass boards and the dishwasher | use a wooden board
shrunken wool | soak it in cool water with conditioner | hot water and spinning | wash wool cold by hand
a foggy bathroom mirror | run the fan and rub it with soap | steam on cold glass | open the door after a shower
a flat car battery | start it with jump leads | lights left on overnight | drive a longer trip each week
a smelly dishwasher | clean the filter | food caught in the filter | run it hot once a month
dry skin | use a plain cream after washing | cold dry air and hot showers | drink enough and shower cooler
a stiff neck | warm it and move it gently | a long day at a desk | raise the screen and take breaks
hiccups | hold your breath for a short while | eating too fast | chew slowly
a mosquito bite | cool it and do not scratch | an insect that fed on you | sleep under a net
jet lag | get daylight in the morning | crossing time zones | shift your bedtime before the trip
a lost password | use the reset link | having too many accounts | keep them in a password manager
spam email | mark it as junk | an address that was leaked | do not post your address
a paper jam | open the tray and pull the sheet straight out | damp or bent sheets | fan the paper first
scratched floors | rub in wax of the same colour | chairs without felt pads | put felt under the legs
a creaking stair | screw the tread down | wood that has shrunk | keep the air from drying out
lumpy gravy | press it through a sieve | flour poured into hot stock | stir the flour in cold water
faded curtains | dye them or line them | strong sun | close them at noon
"""),
)

GOALS = Table(
    (
        Slot(
            (
                "How can I {n}?",
                "I want to {n}. Where do I start?",
                "Do you have a tip to help me {n}?",
            ),
            (
                "To {n}, start like this: {v}.",
                "A good first step to {n}: {v}.",
                "People who {n} often do this: {v}.",
            ),
        ),
        Slot(
            (
                "What mistake should I avoid when I try to {n}?",
                "What stops people who want to {n}?",
            ),
            ("When you try to {n}, avoid this: {v}.", "What stops people who want to {n} is {v}."),
        ),
        Slot(
            ("How will I know that I {n} well?", "How do I measure whether I {n}?"),
            ("You will know that you {n} when {v}.", "A sign that you {n} is that {v}."),
        ),
    ),
    _rows("""
sleep better | go to bed at the same hour | looking at a bright screen at night | you wake before the alarm
save money | put a fixed sum aside on payday | small buys that nobody counts | your account grows each month
learn to swim | practise breathing in shallow water | holding your breath too long | you float without effort
read more books | carry a book with you | starting too many at once | you finish one each month
run five kilometres | mix walking and running | starting too fast | you can talk while running
speak in public | rehearse aloud to a friend | reading from the slides | listeners ask you questions
learn a language | speak a little every day | waiting until it is perfect | you can order a meal
write a good essay | make an outline first | a thesis nobody can find | a friend can repeat your point
eat more vegetables | fill half the plate with them | buying more than you can cook | you miss them when they are gone
study for an exam | test yourself with old questions | reading the same page again | you explain it without notes
find a new job | ask people who work there | sending one letter to all | you are invited to interviews
make new friends | join a club that meets weekly | giving up after one evening | someone calls you first
meditate | sit for five minutes and count breaths | judging every thought | you notice tension earlier
train a puppy | reward good behaviour at once | long lessons and shouting | it comes when you call
draw faces | start from simple shapes | drawing details first | the eyes sit at half height
play the guitar | change chords slowly in time | skipping the boring scales | a song flows without a stop
take better photos | look for soft light | shooting everything from eye level | you delete more than you keep
organise a desk | keep only daily things on top | boxes without labels | you find a pen at once
grow stronger | lift a little more each week | training with poor form | the old weight feels light
cook at home | plan three meals on Sunday | recipes with twenty steps | takeaway boxes disappear
drink more water | keep a bottle in sight | waiting until you are thirsty | headaches become rare
stop biting my nails | keep hands busy with a ball | feeling ashamed of each slip | you need a nail file
wake up early | put the alarm across the room | pressing snooze | breakfast is no rush
learn to code | build something tiny that you need | copying without trying | you fix your own errors
pack for a trip | write a list and halve it | clothes for every weather | the bag closes easily
"""),
)

THINGS = Table(
    (
        Slot(
            (
                "What is {n}?",
                "Can you explain {n}?",
                "I keep hearing about {n}. What does it mean?",
            ),
            (
                "Put simply, {n} is {v}.",
                "In plain words {n} is {v}.",
                "You can think of {n} as {v}.",
            ),
        ),
        Slot(
            ("Why does {n} matter?", "What is {n} good for?"),
            ("It matters because {n} {v}.", "The point is that {n} {v}."),
        ),
        Slot(
            ("Can you give me an example of {n}?", "What would be a case of {n}?"),
            ("A simple example of {n} is {v}.", "For example, {n} shows in {v}."),
        ),
    ),
    _rows("""
inflation | a general rise of prices | makes the same money buy less | bread that costs more each year
photosynthesis | how plants turn light into sugar | feeds almost all life | a leaf in the sun
gravity | the pull between masses | keeps planets in their paths | an apple that falls
democracy | rule by the votes of the people | lets people replace bad leaders | an election of a mayor
a vaccine | a training for the immune system | prevents grave illness | a measles shot
evaporation | the change of a liquid into vapour | cools skin and dries clothes | a puddle that vanishes
compound interest | interest paid on earlier interest | makes savings grow faster | an account left alone for years
a budget | a plan for income and spending | shows where money goes | a list of rent, food and fun
recycling | making new goods from waste | saves raw material | glass bottles melted again
friction | the force that resists sliding | lets brakes and shoes work | a match drawn over sandpaper
encryption | writing a message so only the right reader can open it | keeps letters and payments private | a locked chat
a metaphor | a comparison without the word like | makes an idea vivid | time is money
an algorithm | a list of exact steps | lets a machine solve a task | a recipe for sorting cards
erosion | the slow wearing away of land | shapes valleys and coasts | a river that cuts a canyon
migration | a long regular journey | lets animals follow food | storks that fly south
a magnet | a body that pulls iron | drives motors and compasses | a note held on the fridge
insurance | a shared fund against bad luck | spreads a loss over many people | a payment after a fire
an eclipse | a shadow cast by moon or earth | lets us study the sun | a noon that turns dark
fermentation | sugar changed by microbes | keeps food and adds flavour | cabbage that turns sour
an atom | the smallest piece of an element | explains why substances differ | a single grain of helium
supply and demand | the tug between sellers and buyers | sets the price of goods | umbrellas in rain
a placebo | a treatment without active substance | shows whether a drug truly works | a sugar pill
biodiversity | the variety of life in a place | keeps nature stable | a meadow with a hundred species
a mortgage | a loan for a home | lets a family buy before saving it all | a house paid over thirty years
refraction | the bending of light at a surface | makes lenses possible | a straw that looks broken
a virus | a tiny particle that needs a host | explains colds and flu | a cough passed on in a bus
sarcasm | saying the opposite of what you mean | can amuse or hurt | great weather in a storm
the water cycle | the round of rain, rivers and clouds | brings fresh water to land | sea water that falls as snow
a habit | an action done without thinking | saves effort every day | brushing teeth at night
probability | a number for how likely something is | helps us choose under doubt | one in six for a die
"""),
)

HARMS = tuple(
    Harm(name, *facts)
    for name, facts in _rows("""
read my sister's private diary | it would break her trust | ask her how she has been feeling
get into my ex's email account | it is an invasion of privacy | talk it over or let it rest
pick the lock of my neighbour's shed | it is their property | ask to borrow what you need
copy my friend's homework | you would not learn and could both be punished | ask for help with one exercise
write a fake doctor's note | forged papers can cost a job or a place at school | ask openly for a day off
spread a rumour about a colleague | it can hurt a person badly | speak with the colleague in private
steal a bicycle | somebody depends on it | look at a second-hand shop or a repair club
cheat in my driving test | it puts other people in danger | book a few more lessons
skip paying my taxes | it is against the law | ask the office for a payment plan
scare my little brother at night | he could lose sleep and trust | plan a silly prank that he enjoys too
insult someone online | words like that wound real people | leave the thread or answer calmly
sneak into a concert | staff and artists live from tickets | look for reduced seats
drive home after drinking | you could kill someone | call a taxi or stay the night
sell a broken phone as new | the buyer would be deceived | describe the fault and lower the price
trick my grandmother out of money | she trusts you and could lose her savings | tell the family what you need
poison the neighbour's cat | it is cruel and a crime | talk about a fence or a sprinkler
follow a woman home | it would frighten her and is stalking | say hello in a public place and accept a no
make my classmate cry | bullying leaves long scars | ask a teacher to help with the quarrel
fake a review of a restaurant | honest cooks lose their living | write about a meal you really had
steal medicine from a hospital | patients need it | ask a doctor or a help line
hide a tracker in my partner's bag | it destroys trust and is not legal | talk about what worries you
set fire to a bin | fires spread quickly | call a friend when anger rises
buy alcohol for a child | it harms a growing body | offer something fun without alcohol
blackmail my boss | it is a serious crime | take a complaint to a union or a lawyer
mock a stutter | it shames a person for something they cannot choose | listen patiently
hack the school's computers | private records could leak | join a club where hacking is legal
lose ten kilos in a week | it is dangerous for your heart | see a doctor about a slow plan
hit my dog until it obeys | it causes pain and fear | train it with rewards
pretend to be a police officer | people could be harmed by false orders | ask the real police for help
leave a baby alone in the car | heat can kill within minutes | take the child along
""").items()
)

TABLES = (ANIMALS, COUNTRIES, DISHES, PLANTS, TOOLS, PROBLEMS, GOALS, THINGS)
