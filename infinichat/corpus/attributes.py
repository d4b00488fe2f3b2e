"""What people and places have: attributes as noun phrases, by the kind of value that they take.

Kinds are the names in ``vocabulary.MAKERS``. Composed attributes (a place and what it has, "favourite" and a
thing) are put together in ``facts.py``.
"""

from __future__ import annotations

from infinichat.corpus.vocabulary import words

# noun phrases that a person can have, by the kind of value; {} lines up with MAKERS
PERSONAL: dict[str, tuple[str, ...]] = {
    "name": words("name"),
    "year": words("birth year"),
    "phone": words("phone number, mobile number, work number"),
    "email": words("email address, work email"),
    "diet": words("diet"),
    "subject": words("subject of study"),
    "code": words(
        "locker code, PIN, badge number, room number, account number, phone extension, membership number, "
        "student number, "
        "order number, ticket number, library card number, employee number, case number, customer number, "
        "bank PIN, "
        "phone PIN, safe combination, suitcase code, bike lock code, gym code, passport number, licence "
        "number, pass key, "
        "secret number, voicemail PIN, alarm code, patient number, locker combination, meeting ID, tax "
        "number, "
        "registration number, parcel number, insurance number, door code, garage code, verification code, "
        "policy number"
    ),
    "number": words(
        "bus number, seat number, house number, lucky number, desk number, race number, jersey number, "
        "parking space, "
        "table number, flat number, queue number, tram number, platform number, shoe size, shirt number, "
        "gate number, "
        "hotel floor, number of siblings, number of cousins"
    ),
    "age": words(
        "age, mother's age, father's age, grandmother's age, son's age, daughter's age, dog's age, house's "
        "age"
    ),
    "person": words(
        "sister, brother, cousin, aunt, uncle, nephew, niece, boss, manager, dentist, doctor, neighbour, "
        "best friend, "
        "teacher, landlord, coach, roommate, lawyer, accountant, hairdresser, gardener, plumber, "
        "therapist, mentor, "
        "business partner, piano teacher, yoga teacher, driving instructor, babysitter, personal trainer, "
        "vet, supervisor, "
        "assistant, editor, agent, mechanic, wife, husband, mother, father, son, daughter, grandmother, "
        "grandfather, girlfriend, boyfriend, partner, fiancé, grandson, granddaughter, stepson, "
        "mother-in-law, "
        "oldest friend, chess partner, dance partner, tutor, first teacher, godmother, godfather, team "
        "leader, tennis coach"
    ),
    "pet": words(
        "dog, cat, parrot, horse, rabbit, hamster, goldfish, turtle, pony, canary, guinea pig, snake, "
        "ferret, goat"
    ),
    "colour": words(
        "car colour, bike colour, eye colour, hair colour, front door colour, umbrella colour, coat "
        "colour, kitchen colour, "
        "backpack colour, suitcase colour, scarf colour, bedroom colour, team colour, sofa colour"
    ),
    "town": words(
        "home town, birthplace, holiday destination, next destination, dream destination, honeymoon "
        "destination, "
        "university town, place of work, parents' home town, next conference city, favourite city, layover "
        "city"
    ),
    "country": words(
        "home country, favourite country, country of birth, next country to visit, dream country"
    ),
    "job": words(
        "job, first job, dream job, mother's job, father's job, side job, old job, brother's job, sister's "
        "job"
    ),
    "hobby": words(
        "hobby, new hobby, main hobby, weekend hobby, childhood hobby, secret hobby, favourite pastime"
    ),
    "instrument": words("instrument, first instrument, favourite instrument, second instrument"),
    "car": words("car, first car, dream car, rental car, company car, father's car, old car"),
    "brand": words(
        "phone brand, laptop brand, camera brand, watch brand, printer brand, headphone brand, old phone "
        "brand"
    ),
    "language": words("native language, second language, mother tongue, favourite language, language course"),
    "star": words("star sign, zodiac sign"),
    "word": words(
        "password, nickname, codename, wifi password, safe word, secret word, email password, old password, "
        "school nickname, bank password, laptop password, backup password, clue, magic word"
    ),
    "made_up": words(
        "surname, maiden name, middle name, username, wifi network, village, gamer name, company, school, "
        "pen name, "
        "stage name, guild name, home planet in the game, character's name"
    ),
    "title": words(
        "boat's name, band's name, team name, project name, novel's title, favourite book, favourite film, "
        "startup's name, café's name, thesis title, podcast's name"
    ),
    "date": words(
        "birthday, wedding anniversary, exam date, flight date, appointment date, moving date, graduation "
        "date, interview "
        "date, start date, deadline, concert date, delivery date, mother's birthday, father's birthday, "
        "wedding date, "
        "sister's birthday, brother's birthday, visa expiry date, departure date, check-up date"
    ),
    "time": words(
        "wake-up time, meeting time, train time, flight time, bedtime, lunch time, alarm time, appointment "
        "time, class time, "
        "shift start, bus departure, dinner reservation, check-in time"
    ),
    "weekday": words(
        "cleaning day, day off, gym day, laundry day, meeting day, market day, piano lesson day, shopping "
        "day, bin day"
    ),
    "reference": words(
        "booking reference, licence plate, flight number, voucher code, postcode, order code, serial "
        "number, seat, discount code, tracking code"
    ),
    "street": words("street, address, office address, old street, parents' address, hotel address"),
    "food": words(
        "lunch today, allergy, signature dish, comfort food, usual breakfast, birthday dinner, packed lunch"
    ),
    "drink": words("usual drink, coffee order, morning drink, bedtime drink"),
}
FAVOURITES: dict[str, tuple[str, ...]] = {
    "colour": words("colour, paint colour"),
    "food": words("food, dish, meal, dinner, breakfast, comfort dish"),
    "drink": words("drink, hot drink, cold drink"),
    "fruit": words("fruit, ice cream flavour, jam, yoghurt flavour, smoothie"),
    "animal": words("animal, zoo animal, wild animal"),
    "season": words("season, time of year"),
    "month": words("month, month of the year"),
    "weekday": words("weekday, day of the week"),
    "sport": words("sport, team sport, sport to watch"),
    "music": words("kind of music, music genre"),
    "flower": words("flower, garden plant, scent"),
    "game": words("board game, game, family game"),
    "subject": words("school subject, subject at school"),
    "stone": words("gemstone, stone"),
    "instrument": words("musical instrument, sound in an orchestra"),
    "town": words("city, holiday town, place"),
    "country": words("country, travel country"),
    "word": words("word, song, poem, recipe"),
    "title": words(
        "book, film, novel, TV show, album, podcast, play, magazine, painting, bookshop, restaurant, pub"
    ),
    "number": words("number, lottery number"),
    "person": words(
        "teacher, writer, singer, actor, painter, composer, author, cousin, poet, philosopher, player"
    ),
    "car": words("car brand, car"),
    "language": words("language, foreign language"),
    "job": words("profession, childhood dream job"),
    "hobby": words("pastime, weekend activity, holiday activity"),
}
PLACES = words(
    "garage, office, cabin, basement, storage unit, bike shed, warehouse, clinic, library, swimming pool, "
    "hotel, "
    "laboratory, kitchen, attic, server room, cottage, boathouse, workshop, studio, theatre, museum, "
    "school, church, "
    "bakery, stable, greenhouse, meeting room, red suitcase, blue suitcase, old safe, new safe, front "
    "door, back door, "
    "side gate, tool shed, archive, vault, gym, club, beach house, holiday flat, farm, factory, parking "
    "garage, observatory, "
    "printer, projector, spaceship, treasure chest, lighthouse, embassy, sauna, wine cellar, shop, "
    "restaurant, guest room"
)
PLACE_THINGS: dict[str, tuple[str, ...]] = {
    "code": words(
        "door code, alarm code, gate code, key number, phone number, access code, code, combination, entry "
        "code, PIN, serial number, room number, security code, lock code"
    ),
    "word": words("password, wifi password, codeword, secret word"),
    "made_up": words("wifi network, owner, caretaker, architect, street name"),
    "person": words("owner, manager, cleaner, caretaker, contact person, guard, keeper"),
    "colour": words("colour, door colour, roof colour, wall colour"),
    "time": words("opening time, closing time"),
    "weekday": words("cleaning day, closing day, delivery day"),
    "number": words("floor, shelf number, number of windows, number of keys"),
    "date": words("inspection date, opening date, renovation date"),
    "title": words("name, motto"),
    "street": words("address, street"),
}

BARE_THINGS: dict[str, tuple[str, ...]] = {
    "code": words("pass key, code, PIN, key number, secret number, combination, access code"),
    "word": words("password, secret word, wifi password, code name"),
    "number": words("room number, gate number, table number"),
    "person": words("winner, new manager, guest of honour, driver"),
    "time": words("meeting time, departure time, start time"),
    "weekday": words("meeting day, delivery day"),
    "date": words("deadline, exam date, opening date"),
    "town": words("next stop, meeting place, destination"),
    "title": words("title of the talk, name of the ship, name of the project"),
    "reference": words("flight number, booking reference"),
}
"""What a talk has one of: "the pass key", nobody's and of no place."""

EVENTS = words(
    "flight, meeting, appointment, dentist appointment, doctor's appointment, exam, job interview, party, "
    "concert, wedding, class, presentation, haircut, driving test, check-up, piano lesson, train, delivery, "
    "dinner with friends, date, conference, surgery, graduation, housewarming, yoga class"
)
"""What somebody has at some time: a date, a day of the week, or a time of day."""

EVERYDAY = words(
    "name, home town, home country, birthplace, birth year, age, birthday, job, company, hobby, "
    "instrument, car, native language, language course, subject of study, allergy, diet, address, street, "
    "surname, nickname, phone number, email address, star sign, wake-up time, bedtime, room number, shoe "
    "size, holiday destination, wedding anniversary, anniversary, passport number, PIN, locker code, wifi "
    "password, password, flight number, favourite food, favourite drink, favourite colour, favourite "
    "film, favourite book, favourite sport, favourite animal, favourite song, favourite author, favourite "
    "actor, dog's name, cat's name, rabbit's name, wife, husband, girlfriend, boyfriend, partner, sister, "
    "brother, mother, father, son, daughter, best friend, boss, neighbour, doctor, dentist, teacher"
)
"""What people tell a stranger first: never kept for validation, and drawn more often."""

MINE_ONLY = words("name")
"""What only the user is asked about here: somebody else is named by their name."""
