"""The words that generated facts are made of: what people have, what such things are called, what values
look like.

Only lists and small value makers; how they become sentences is in ``facts.py``. Attributes are composed from
parts (place and kind of code, animal and "name", "favourite" and a thing), which gives thousands of noun
phrases from a few hundred words, so that a memory trained on some of them must work for the others.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence

HELD_OUT_SHARE = 8  # one word in eight is never seen in training


def words(text: str) -> tuple[str, ...]:
    """Comma separated words as a tuple without repetitions."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def is_held_out(text: str, *, share: int = HELD_OUT_SHARE) -> bool:
    """Whether ``text`` belongs to the validation side; the same on every machine and in every run."""
    return zlib.crc32(text.encode()) % share == 0


NAMES = words(
    "Alice, Boris, Clara, Derek, Elena, Felix, Grace, Hector, Irene, Jonas, Karin, Lewis, Maria, Nadia, "
    "Oscar, Petra, "
    "Quinn, Ralph, Sonia, Tomas, Ursula, Victor, Wendy, Xavier, Yusuf, Zelda, Amir, Bella, Carlos, Diana, "
    "Ethan, Fiona, "
    "Gustav, Hanna, Ivan, Julia, Kevin, Laura, Marco, Nina, Olaf, Paula, Rosa, Simon, Tanya, Uwe, Vera, "
    "Walter, Ximena, "
    "Yara, Anton, Beatrice, Cedric, Dora, Emil, Frida, Gordon, Helga, Isaac, Joan, Kurt, Lydia, Martin, "
    "Nora, Owen, "
    "Priya, Rashid, Sarah, Theo, Uma, Vincent, Willa, Zoe, Ahmed, Bruno, Chloe, David, Esther, Frank, "
    "Gloria, Hugo, "
    "Ingrid, James, Kate, Leo, Mona, Nathan, Olivia, Peter, Rachel, Stefan, Teresa, Omar, Violet, William, "
    "Yvonne, "
    "Adam, Bianca, Colin, Daisy, Edgar, Flora, George, Heidi, Ian, Jasmine, Karl, Lena, Max, Naomi, Otto, "
    "Pamela, "
    "Robert, Selma, Tim, Valerie, Wanda, Zack, Agnes, Ben, Cora, Dennis, Eva, Fred, Greta, Henry, Isabel, "
    "Jack, Kira, "
    "Luke, Molly, Nick, Opal, Paul, Ruth, Sam, Tessa, Vivian, Wes, Abigail, Brandon, Camille, Dmitri, "
    "Elise, Finn, "
    "Gemma, Harold, Ivy, Joel, Kelly, Liam, Mira, Noel, Ophelia, Pablo, Renata, Sven, Trevor, Usha, "
    "Vikram, Wilma, "
    "Aisha, Bernard, Celia, Duncan, Erica, Floyd, Gina, Hassan, Imogen, Jerome, Kamal, Lorenzo, Mabel, "
    "Nolan, Odette, "
    "Percy, Regina, Seth, Tilda, Ulrich, Valentina, Warren, Yasmin, Zachary, Annika, Basil, Colette, "
    "Dustin, Edith"
)
SYLLABLES = words(
    "bar, bel, cor, dan, del, dor, el, fan, gar, hal, jor, kal, kin, lan, lor, mar, mel, mor, nor, pel, "
    "ran, rin, sal, "
    "sor, tal, ter, val, ven, wes, zan, ber, tik, osh, ulm, fen, dra, quil, stam, brek, vos"
)
KIN = words(
    "brother, sister, mother, father, wife, husband, son, daughter, uncle, aunt, cousin, boss, neighbour, "
    "best friend, "
    "grandmother, grandfather, landlord, roommate, teacher, colleague, niece, nephew, partner, flatmate, "
    "manager"
)
COLOURS = words(
    "red, blue, green, purple, orange, yellow, crimson, teal, silver, black, white, pink, brown, gold, "
    "grey, turquoise, "
    "violet, maroon, beige, navy, olive, scarlet, cream, lilac, indigo, copper, ivory, amber, coral, emerald"
)
TOWNS = words(
    "Lisbon, Toronto, Nairobi, Osaka, Warsaw, Lima, Dublin, Cairo, Sydney, Oslo, Berlin, Madrid, Quito, "
    "Hanoi, Prague, "
    "Vienna, Boston, Chicago, Seattle, Denver, Paris, Rome, Athens, Delhi, Mumbai, Seoul, Tokyo, Bangkok, "
    "Jakarta, "
    "Manila, Havana, Bogota, Santiago, Montreal, Vancouver, Glasgow, Leeds, Bristol, Geneva, Zurich, "
    "Munich, Hamburg, "
    "Milan, Naples, Turin, Porto, Seville, Valencia, Marseille, Lyon, Brussels, Antwerp, Rotterdam, "
    "Helsinki, "
    "Stockholm, Bergen, Reykjavik, Tallinn, Riga, Vilnius, Budapest, Belgrade, Sofia, Istanbul, Ankara, "
    "Tehran, Baghdad, "
    "Damascus, Tunis, Algiers, Dakar, Accra, Lagos, Durban, Perth, Brisbane, Auckland, Wellington, Austin, "
    "Portland, "
    "Cape Town, New York, Buenos Aires, San Diego, Hong Kong, Mexico City, Salt Lake City, Kuala Lumpur"
)
COUNTRIES = words(
    "France, Germany, Spain, Italy, Portugal, Norway, Sweden, Finland, Poland, Greece, Turkey, Egypt, "
    "Kenya, Ghana, "
    "Brazil, Chile, Peru, Mexico, Canada, Japan, China, India, Vietnam, Thailand, Nepal, Australia, "
    "Iceland, Ireland, "
    "Hungary, Austria, Denmark, Cuba, Morocco, Jordan, New Zealand, South Korea, Costa Rica, Sri Lanka"
)
PET_NAMES = words(
    "Biscuit, Marble, Ziggy, Pepper, Cosmo, Waffles, Juniper, Otis, Rusty, Daisy, Shadow, Bruno, Luna, "
    "Rex, Bella, "
    "Milo, Oreo, Ginger, Smokey, Tiger, Buddy, Coco, Felix, Nala, Simba, Bandit, Misty, Patch, Snowy, "
    "Pickles, Maple, "
    "Ruby, Scout, Toby, Willow, Ziggy, Mochi, Noodle, Pebble, Sunny, Thor, Apollo, Duke, Fudge, Hazel, "
    "Jasper, Kiki, "
    "Loki, Muffin, Nugget, Peanut, Popcorn, Raven, Sparky, Tinker, Trixie, Velvet, Whiskers, Button, "
    "Captain Hook, "
    "Mister Tibbs, Lady Grey, Sir Barks"
)
FOODS = words(
    "pizza, sushi, curry, pasta, soup, salad, tacos, bread, cheese, noodles, rice, steak, lasagne, ramen, "
    "dumplings, "
    "paella, risotto, pancakes, waffles, porridge, omelette, falafel, hummus, burgers, lentils, kebab, "
    "fish and chips, "
    "roast chicken, apple pie, mushroom soup, beef stew, baked potatoes"
)
DRINKS = words(
    "tea, coffee, water, milk, cocoa, lemonade, orange juice, green tea, cider, beer, red wine, cola, "
    "espresso, latte, "
    "apple juice, ginger ale, iced tea, mint tea, hot chocolate, tonic water, coconut water, cappuccino"
)
FRUITS = words(
    "apple, banana, mango, cherry, peach, plum, grape, lemon, melon, papaya, kiwi, orange, apricot, fig, "
    "pear, raspberry, "
    "strawberry, blueberry, pineapple, watermelon, coconut, lime, pomegranate"
)
ANIMALS = words(
    "otter, fox, owl, wolf, panda, koala, eagle, dolphin, giraffe, penguin, tiger, lion, hedgehog, badger, "
    "falcon, seal, "
    "whale, octopus, raven, swan, camel, elephant, zebra, leopard, squirrel, beaver, moose, heron, turtle, "
    "lynx"
)
JOBS = words(
    "teacher, doctor, pilot, baker, lawyer, farmer, nurse, painter, plumber, writer, singer, judge, chef, "
    "carpenter, "
    "electrician, dentist, architect, engineer, librarian, translator, gardener, photographer, journalist, "
    "firefighter, "
    "accountant, tailor, mechanic, pharmacist, geologist, surgeon, waiter, barber, butcher, cashier, truck "
    "driver, "
    "tour guide, flight attendant, software developer, shepherd, locksmith"
)
HOBBIES = words(
    "chess, fishing, skating, hiking, reading, sewing, boxing, sailing, dancing, yoga, pottery, gardening, "
    "knitting, "
    "archery, climbing, painting, cycling, origami, astronomy, baking, surfing, fencing, swimming, "
    "juggling, beekeeping, "
    "woodworking, bird watching, calligraphy, rowing, photography, stamp collecting, horse riding"
)
INSTRUMENTS = words(
    "piano, violin, guitar, drums, flute, cello, trumpet, harp, banjo, clarinet, saxophone, accordion, "
    "trombone, "
    "mandolin, ukulele, organ, oboe, viola, tuba, bassoon"
)
CARS = words(
    "Toyota, Ford, Volvo, Honda, Fiat, Tesla, Audi, Mazda, Jeep, Skoda, Nissan, Subaru, Peugeot, Renault, "
    "Kia, Hyundai, "
    "Porsche, Jaguar, Opel, Saab, Lexus, Bentley, Citroen, Land Rover"
)
BRANDS = words(
    "Lenovo, Dell, Apple, Samsung, Nokia, Canon, Nikon, Sony, Asus, Acer, Garmin, Casio, Bosch, Philips, "
    "Siemens, "
    "Motorola, Fujitsu, Panasonic, Epson, Leica, Pixel, Huawei"
)
LANGUAGES = words(
    "French, German, Arabic, Hindi, Spanish, Polish, Greek, Turkish, Korean, Dutch, Swedish, Japanese, "
    "Italian, Russian, "
    "Portuguese, Swahili, Finnish, Welsh, Czech, Danish, Hebrew, Persian, Thai, Latin, Mandarin, Icelandic"
)
MONTHS = words(
    "January, February, March, April, May, June, July, August, September, October, November, December"
)
WEEKDAYS = words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday")
SEASONS = words("spring, summer, autumn, winter")
SPORTS = words(
    "football, tennis, golf, rugby, cricket, hockey, basketball, volleyball, baseball, badminton, judo, "
    "karate, rowing, "
    "table tennis, water polo, handball, skiing, curling, athletics, gymnastics"
)
MUSIC = words(
    "jazz, rock, opera, blues, reggae, techno, folk, soul, metal, punk, country music, hip hop, ska, "
    "swing, disco"
)
FLOWERS = words(
    "rose, tulip, lily, daisy, orchid, violet, sunflower, iris, poppy, lavender, jasmine, peony, dahlia, "
    "lotus, daffodil, "
    "carnation, marigold, magnolia, hyacinth, snowdrop"
)
STARS = words(
    "Aries, Taurus, Gemini, Cancer, Leo, Virgo, Libra, Scorpio, Sagittarius, Capricorn, Aquarius, Pisces"
)
GAMES = words(
    "chess, Monopoly, Scrabble, Catan, Risk, Go, checkers, Cluedo, dominoes, backgammon, Carcassonne, "
    "Pandemic, Ludo"
)
SUBJECTS = words(
    "maths, history, biology, physics, chemistry, geography, music, art, Latin, economics, philosophy, drama"
)
STONES = words(
    "ruby, opal, jade, amber, pearl, topaz, diamond, emerald, sapphire, garnet, amethyst, quartz, turquoise"
)
NOUNS = words(
    "harbour, garden, river, mountain, lantern, bridge, forest, island, window, mirror, castle, desert, "
    "meadow, thunder, "
    "feather, compass, anchor, candle, marble, velvet, copper, willow, saddle, pepper, rocket, magnet, "
    "blanket, hammer, "
    "ladder, basket, bottle, button, carpet, clock, comet, crown, dragon, engine, falcon, glacier, helmet, "
    "jacket, kettle, "
    "lemon, needle, ocean, palace, pencil, pirate, planet, pocket, prism, puzzle, ribbon, robot, shadow, "
    "signal, spider, "
    "statue, sunset, temple, ticket, tunnel, turbine, umbrella, valley, violin, wagon, whistle, zebra, "
    "acorn, badger, "
    "cactus, diamond, ember, fiddle, goblin, hazel, igloo, jungle, kitten, lagoon, mango, nectar, orbit, "
    "pebble, quartz, "
    "rabbit, sapphire, tango, urchin, vortex, walnut, yonder, zephyr, breeze, cobalt, dolphin, eclipse, "
    "flamingo, granite"
)
ADJECTIVES = words(
    "silent, golden, hidden, broken, crimson, distant, frozen, gentle, hollow, lonely, midnight, northern, "
    "painted, quiet, "
    "restless, scarlet, silver, southern, stolen, velvet, wandering, wild, winter, wooden, ancient, "
    "bright, curious, last"
)
DIETS = words(
    "vegetarian, vegan, pescatarian, gluten-free, kosher, halal, lactose-free, low-carb, sugar-free"
)
MAILS = words("mail.com, post.org, letters.net, inbox.io")
STREETS = words("Street, Road, Lane, Avenue, Square, Drive, Way, Court, Hill")


Maker = Callable[[random.Random, bool], str]
"""(random, held out?) -> a value as it is written in a sentence."""


def choose(rng: random.Random, options: Sequence[str], held_out: bool) -> str:
    """One of ``options`` from the training side or the validation side; from all where a side is too
    small."""
    side = [word for word in options if is_held_out(word) == held_out]
    return rng.choice(side if len(side) >= 2 else list(options))


def _choice(options: Sequence[str]) -> Maker:
    return lambda rng, held_out: choose(rng, options, held_out)


def digits(low: int, high: int) -> Maker:
    """A maker of decimal strings with ``low`` to ``high`` digits."""
    return lambda rng, held_out: "".join(rng.choice("0123456789") for _ in range(rng.randint(low, high)))


def made_up_word(rng: random.Random, held_out: bool) -> str:
    """A capitalised word nobody has seen: two or three syllables."""
    while True:
        word = "".join(rng.choice(SYLLABLES) for _ in range(rng.choice((2, 2, 3)))).capitalize()
        if is_held_out(word) == held_out:
            return word


def person(rng: random.Random, held_out: bool) -> str:
    """A first name, sometimes with a made-up surname."""
    first = choose(rng, NAMES, held_out)
    return f"{first} {made_up_word(rng, held_out)}" if rng.random() < 0.2 else first


def secret(rng: random.Random, held_out: bool) -> str:
    """A password-like word: a noun, two nouns, a noun with digits, or a made-up word."""
    noun = choose(rng, NOUNS, held_out)
    shape = rng.random()
    if shape < 0.45:
        return noun
    if shape < 0.6:
        return f"{noun}{rng.randint(10, 99)}"
    if shape < 0.8:
        return made_up_word(rng, held_out)
    return f"{choose(rng, ADJECTIVES, held_out)} {noun}"


def title(rng: random.Random, held_out: bool) -> str:
    """The name of a book, boat, band or project."""
    noun = choose(rng, NOUNS, held_out).capitalize()
    shape = rng.random()
    if shape < 0.4:
        return f"The {choose(rng, ADJECTIVES, held_out).capitalize()} {noun}"
    return f"{choose(rng, ADJECTIVES, held_out).capitalize()} {noun}" if shape < 0.7 else noun


def date(rng: random.Random, held_out: bool) -> str:
    """A day of the year in one of three notations."""
    day, month = rng.randint(1, 28), rng.choice(MONTHS)
    shape = rng.random()
    if shape < 0.5:
        return f"{day} {month}"
    return f"{month} {day}" if shape < 0.9 else f"{day} {month} {rng.randint(1940, 2030)}"


def time_of_day(rng: random.Random, held_out: bool) -> str:
    """A clock time such as 7:30 or 4 pm."""
    if rng.random() < 0.6:
        return f"{rng.randint(1, 23)}:{rng.choice(('00', '15', '30', '45', '10', '20', '40', '50'))}"
    return f"{rng.randint(1, 12)} {rng.choice(('am', 'pm'))}"


def reference(rng: random.Random, held_out: bool) -> str:
    """Letters and digits: a booking reference or a plate."""
    letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(2, 3)))
    number = "".join(rng.choice("0123456789") for _ in range(rng.randint(2, 3)))
    return f"{letters}{number}" if rng.random() < 0.6 else f"{letters}-{number}"


def street(rng: random.Random, held_out: bool) -> str:
    """A street, sometimes with the number of the house."""
    base = f"{choose(rng, NOUNS, held_out).capitalize()} {rng.choice(STREETS)}"
    return f"{rng.randint(1, 99)} {base}" if rng.random() < 0.4 else base


def phone(rng: random.Random, held_out: bool) -> str:
    """A phone number in one of three notations."""
    seven = "".join(rng.choice("0123456789") for _ in range(7))
    shape = rng.random()
    if shape < 0.4:
        return f"{seven[:3]}-{seven[3:]}"
    return f"0{seven}" if shape < 0.7 else f"0{rng.randint(11, 99)} {seven[:6]}"


def email(rng: random.Random, held_out: bool) -> str:
    """An address of electronic mail."""
    return f"{choose(rng, NAMES, held_out).lower()}{rng.randint(1, 99)}@{rng.choice(MAILS)}"


MAKERS: dict[str, Maker] = {
    "code": digits(3, 6),
    "number": digits(1, 3),
    "age": lambda rng, held_out: str(rng.randint(2, 95)),
    "person": person,
    "name": person,
    "pet": _choice(PET_NAMES),
    "colour": _choice(COLOURS),
    "town": _choice(TOWNS),
    "country": _choice(COUNTRIES),
    "food": _choice(FOODS),
    "drink": _choice(DRINKS),
    "fruit": _choice(FRUITS),
    "animal": _choice(ANIMALS),
    "job": _choice(JOBS),
    "hobby": _choice(HOBBIES),
    "instrument": _choice(INSTRUMENTS),
    "car": _choice(CARS),
    "brand": _choice(BRANDS),
    "language": _choice(LANGUAGES),
    "month": _choice(MONTHS),
    "weekday": _choice(WEEKDAYS),
    "season": _choice(SEASONS),
    "sport": _choice(SPORTS),
    "music": _choice(MUSIC),
    "flower": _choice(FLOWERS),
    "star": _choice(STARS),
    "game": _choice(GAMES),
    "subject": _choice(SUBJECTS),
    "stone": _choice(STONES),
    "word": secret,
    "made_up": made_up_word,
    "title": title,
    "date": date,
    "time": time_of_day,
    "reference": reference,
    "street": street,
    "year": lambda rng, held_out: str(rng.randint(1930, 2015)),
    "phone": phone,
    "email": email,
    "diet": _choice(DIETS),
}
