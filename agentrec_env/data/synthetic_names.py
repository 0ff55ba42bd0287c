"""Vocabulary of the embedded world: departments, category paths, product nouns, attributes and brand syllables.

Everything an item of ``agentrec_env.data.synthetic`` can be called comes from here, so that titles read like a shop's
and a new department is one more entry in a table. Brand names are put together from syllables and mean no company.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Leaf:
    """One product type: the end of a category path, with the words its titles are made of."""

    path: tuple[str, ...]
    """From general to specific; the first entry is the department."""
    nouns: tuple[str, ...]
    """What sellers call it. Several words for one thing, so that matching titles by words misses some of it."""
    kinds: tuple[str, ...]
    """Adjectives that a seller puts before the noun."""
    specs: tuple[str, ...]
    """Size, capacity or model facts that follow the noun."""
    price: float
    """Median price in US dollars."""
    goes_with: tuple[str, ...]
    """Last path entries of the product types bought after this one."""


def _leaf(path: str, nouns: str, kinds: str, specs: str, price: float, goes_with: str) -> Leaf:
    def words(text: str, mark: str) -> tuple[str, ...]:
        return tuple(word.strip() for word in text.split(mark))

    return Leaf(words(path, ">"), words(nouns, "|"), words(kinds, "|"), words(specs, "|"), price, words(goes_with, "|"))


_OFFICE, _KITCHEN, _MUSIC = "Office Products", "Home & Kitchen", "Musical Instruments"
_GAMES, _BEAUTY, _GARDEN = "Video Games", "Beauty & Personal Care", "Patio, Lawn & Garden"

LEAVES: tuple[Leaf, ...] = (
    # Office Products
    _leaf(f"{_OFFICE} > Office & School Supplies > Writing Supplies > Gel Pens",
          "Gel Pens|Rollerball Pens|Gel Ink Pens", "Retractable|Fine Point|Quick-Dry|Smooth Writing|No-Smear",
          "0.5mm|0.7mm|1.0mm|Needle Tip|Medium Point", 9.5, "Notebooks|Desk Organizers"),
    _leaf(f"{_OFFICE} > Office & School Supplies > Writing Supplies > Highlighters & Markers",
          "Highlighters|Permanent Markers|Dry Erase Markers", "Chisel Tip|Dual Tip|Low-Odor|Pastel|Bright",
          "Broad Tip|Fine Tip|Bullet Tip|Extra Fine", 8.0, "Notebooks|Whiteboards"),
    _leaf(f"{_OFFICE} > Office & School Supplies > Paper > Notebooks",
          "Notebook|Dotted Journal|Composition Book", "Hardcover|Spiral Bound|Lay-Flat|Softcover|Recycled",
          "A5|8.5 x 11 in|College Ruled|Wide Ruled|120 gsm", 12.0, "Gel Pens|Sticky Notes & Labels"),
    _leaf(f"{_OFFICE} > Office & School Supplies > Paper > Sticky Notes & Labels",
          "Sticky Notes|Self-Adhesive Labels|Page Flags", "Super Sticky|Removable|Lined|Pop-Up|Waterproof",
          "3 x 3 in|2 x 4 in|4 x 6 in|1.5 x 2 in", 7.0, "Highlighters & Markers|Desk Organizers"),
    _leaf(f"{_OFFICE} > Office & School Supplies > Desk Accessories > Desk Organizers",
          "Desk Organizer|Pen Holder|File Sorter", "Mesh|Stackable|Bamboo|Rotating|Under-Desk",
          "5 Compartments|2 Tier|3 Drawers|12 in Wide", 21.0, "Gel Pens|Desk Lamps"),
    _leaf(f"{_OFFICE} > Office & School Supplies > Presentation > Whiteboards",
          "Whiteboard|Dry Erase Board|Magnetic Glass Board", "Wall-Mounted|Double-Sided|Frameless|Portable|Rolling",
          "24 x 36 in|11 x 14 in|36 x 48 in|A3", 38.0, "Highlighters & Markers|Desk Organizers"),
    _leaf(f"{_OFFICE} > Office Electronics > Printing > Ink & Toner",
          "Ink Cartridge|Toner Cartridge|Refill Ink", "High-Yield|Remanufactured|Standard Yield|Pigment|Photo",
          "K20 XL|M41 XL|Series 7T|Series 90B|1,600 Pages", 27.0, "Notebooks|Sticky Notes & Labels"),
    _leaf(f"{_OFFICE} > Office Furniture & Lighting > Lighting > Desk Lamps",
          "LED Desk Lamp|Clamp Light|Monitor Light Bar", "Dimmable|Swing Arm|Touch Control|Foldable|Gooseneck",
          "10 W|USB-C|5 Color Modes|24 in Arm", 33.0, "Office Chairs|Desk Organizers"),
    _leaf(f"{_OFFICE} > Office Furniture & Lighting > Seating > Office Chairs",
          "Office Chair|Task Chair|Drafting Stool", "Ergonomic|High-Back|Mesh|Armless|Adjustable",
          "300 lb Capacity|Lumbar Support|Flip-Up Arms|Footrest", 149.0, "Desk Lamps|Desk Organizers"),
    # Home & Kitchen
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Cookware > Skillets & Pans",
          "Skillet|Frying Pan|Saute Pan", "Nonstick|Cast Iron|Carbon Steel|Ceramic|Tri-Ply",
          "8 in|10 in|12 in|with Lid|3.5 qt", 36.0, "Cooking Utensils|Baking Sheets"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Cookware > Stock Pots",
          "Stock Pot|Dutch Oven|Saucepan", "Stainless Steel|Enameled|Hard-Anodized|Induction|Heavy Duty",
          "4 qt|6 qt|8 qt|12 qt|with Strainer", 52.0, "Cooking Utensils|Food Storage"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Bakeware > Baking Sheets",
          "Baking Sheet|Cookie Sheet|Sheet Pan", "Nonstick|Aluminum|Rimmed|Perforated|Warp-Resistant",
          "Half Sheet|Quarter Sheet|with Rack|13 x 18 in", 22.0, "Cooking Utensils|Food Storage"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Kitchen Utensils > Cooking Utensils",
          "Cooking Utensils|Spatula|Kitchen Tool", "Silicone|Wooden|Heat-Resistant|Slotted|Flexible",
          "480F|12 in|BPA Free|with Holder", 15.0, "Skillets & Pans|Kitchen Knives"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Kitchen Utensils > Kitchen Knives",
          "Chef Knife|Santoku Knife|Paring Knife", "Forged|High Carbon|Damascus|Full Tang|Serrated",
          "8 in|7 in|5 in|3.5 in|with Sheath", 34.0, "Cutting Boards|Cooking Utensils"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Kitchen Utensils > Cutting Boards",
          "Cutting Board|Chopping Board|Carving Board", "Bamboo|Acacia|Reversible|Dishwasher Safe|Juice Groove",
          "Large|Extra Large|17 x 12 in|with Handle", 24.0, "Kitchen Knives|Food Storage"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Storage & Organization > Food Storage",
          "Food Storage Containers|Glass Meal Prep Containers|Canisters",
          "Airtight|Leakproof|Stackable|Glass|Freezer Safe",
          "1.5 Cup|34 oz|3 Compartments|Snap Lids", 26.0, "Baking Sheets|Cutting Boards"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Coffee & Tea > Coffee Makers",
          "Coffee Maker|Pour Over Dripper|French Press", "Programmable|Single Serve|Double-Wall|Drip|Compact",
          "12 Cup|34 oz|5 Cup|with Grinder", 46.0, "Mugs & Tumblers|Food Storage"),
    _leaf(f"{_KITCHEN} > Kitchen & Dining > Coffee & Tea > Mugs & Tumblers",
          "Coffee Mug|Travel Tumbler|Insulated Cup", "Ceramic|Vacuum Insulated|Spill-Proof|Handmade|Stackable",
          "12 oz|16 oz|20 oz|with Straw|with Lid", 18.0, "Coffee Makers|Cooking Utensils"),
    # Musical Instruments
    _leaf(f"{_MUSIC} > Guitars > Accessories > Guitar Strings",
          "Guitar Strings|Acoustic Strings|Bass Strings", "Phosphor Bronze|Nickel Wound|Coated|Light Gauge|80/20",
          ".009-.042|.010-.046|.012-.053|.045-.105", 10.0, "Guitar Picks|Tuners & Metronomes"),
    _leaf(f"{_MUSIC} > Guitars > Accessories > Guitar Picks",
          "Guitar Picks|Plectrums|Thumb Picks", "Celluloid|Textured Grip|Jazz|Tortoiseshell Pattern|Delrin",
          "0.46mm|0.73mm|0.96mm|1.2mm|Assorted Gauges", 7.5, "Guitar Strings|Straps & Capos"),
    _leaf(f"{_MUSIC} > Guitars > Accessories > Straps & Capos",
          "Guitar Strap|Capo|Strap Locks", "Padded|Woven|Leather|Quick-Release|Vintage",
          "2 in Wide|3 in Wide|for 6-String|Adjustable 40-70 in", 16.0, "Guitar Picks|Instrument Stands"),
    _leaf(f"{_MUSIC} > Guitars > Effects > Effects Pedals",
          "Overdrive Pedal|Delay Pedal|Reverb Pedal", "True Bypass|Analog|Digital|Mini|Stereo",
          "9V|with Tap Tempo|3 Modes|11 Effects", 64.0, "Instrument Cables|Guitar Strings"),
    _leaf(f"{_MUSIC} > Studio & Recording > Cables > Instrument Cables",
          "Instrument Cable|XLR Cable|Patch Cable", "Braided|Right Angle|Low Noise|Gold-Plated|Balanced",
          "3 ft|6 ft|10 ft|20 ft|1/4 in TS", 14.0, "Effects Pedals|Microphones"),
    _leaf(f"{_MUSIC} > Studio & Recording > Recording Gear > Microphones",
          "Condenser Microphone|Dynamic Microphone|USB Microphone",
          "Cardioid|Studio|Handheld|Plug and Play|Large Diaphragm",
          "192 kHz|with Shock Mount|with Boom Arm|XLR", 79.0, "Instrument Cables|Instrument Stands"),
    _leaf(f"{_MUSIC} > Stands & Care > Stands > Instrument Stands",
          "Guitar Stand|Music Stand|Keyboard Stand", "Folding|Tripod|Double-X|Wall Mount|A-Frame",
          "for 3 Guitars|Adjustable Height|with Carry Bag|Heavy Duty", 28.0, "Straps & Capos|Tuners & Metronomes"),
    _leaf(f"{_MUSIC} > Stands & Care > Tuning > Tuners & Metronomes",
          "Clip-On Tuner|Metronome|Chromatic Tuner", "Rechargeable|Mechanical|Digital|Compact|Backlit",
          "for Guitar and Ukulele|360 Degree Clip|A4 430-450 Hz", 15.0, "Guitar Strings|Instrument Stands"),
    _leaf(f"{_MUSIC} > Drums & Percussion > Sticks & Pads > Drumsticks",
          "Drumsticks|Drum Mallets|Practice Pad", "Hickory|Maple|Nylon Tip|Quiet|Wood Tip",
          "5A|5B|7A|12 in|with Bag", 13.0, "Instrument Stands|Tuners & Metronomes"),
    # Video Games
    _leaf(f"{_GAMES} > Console & PC > Games > Action Games",
          "Shadow of the Ninth Tide|Emberfall Chronicles|Iron Meridian",
          "Deluxe Edition|Standard Edition|Remastered|Director's Cut",
          "Console|PC|Handheld|Cross-Gen", 44.0, "Controllers|Gaming Headsets"),
    _leaf(f"{_GAMES} > Console & PC > Games > Puzzle & Family Games",
          "Blocksmith Party|Tiny Harbor Tales|Puzzle Grove", "Complete Edition|Standard Edition|Party Pack|Day One",
          "Console|Handheld|PC|Download Code", 29.0, "Controllers|Carrying Cases"),
    _leaf(f"{_GAMES} > Console & PC > Games > Racing & Sports Games",
          "Apex Circuit|Street Court Legends|Rally Horizon",
          "Season Edition|Standard Edition|Champion Edition|Remastered",
          "Console|PC|Cross-Gen|Handheld", 39.0, "Controllers|Charging Docks"),
    _leaf(f"{_GAMES} > Console & PC > Accessories > Controllers",
          "Wireless Controller|Gamepad|Wired Controller", "Dual Vibration|Programmable|Turbo|Hall Effect|Ergonomic",
          "6-Axis|with Back Buttons|2.4 GHz|USB-C", 41.0, "Charging Docks|Thumb Grips"),
    _leaf(f"{_GAMES} > Console & PC > Accessories > Gaming Headsets",
          "Gaming Headset|Wireless Headset|Stereo Headphones",
          "Noise Canceling Mic|Over-Ear|Surround Sound|Low Latency|RGB",
          "50mm Drivers|30 h Battery|3.5mm|USB", 48.0, "Charging Docks|Controllers"),
    _leaf(f"{_GAMES} > Console & PC > Accessories > Charging Docks",
          "Charging Dock|Controller Charger|Charging Station", "Dual|Fast Charging|Vertical|with Cooling Fan|LED",
          "for 2 Controllers|2 h Charge|with Battery Packs|5 V", 24.0, "Controllers|Carrying Cases"),
    _leaf(f"{_GAMES} > Console & PC > Accessories > Thumb Grips",
          "Thumb Grips|Joystick Caps|Controller Skin", "Silicone|Cat Paw|High-Rise|Anti-Slip|Textured",
          "Low Profile|Mixed Height|for Left and Right|with Dust Plugs", 8.0, "Controllers|Carrying Cases"),
    _leaf(f"{_GAMES} > Handheld > Protection > Carrying Cases",
          "Carrying Case|Travel Bag|Hard Shell Case", "Slim|Waterproof|Deluxe|Shockproof|Portable",
          "20 Game Slots|10 Game Slots|with Stand|with Strap", 20.0, "Screen Protectors|Thumb Grips"),
    _leaf(f"{_GAMES} > Handheld > Protection > Screen Protectors",
          "Screen Protector|Tempered Glass|Anti-Glare Film", "9H|Matte|Ultra Clear|Blue Light|Privacy",
          "7 in|6.2 in|Alignment Frame|0.3mm", 9.0, "Carrying Cases|Charging Docks"),
    # Beauty & Personal Care
    _leaf(f"{_BEAUTY} > Skin Care > Face > Face Moisturizers",
          "Face Moisturizer|Day Cream|Gel Cream", "Hydrating|Fragrance Free|Ceramide|Oil-Free|Soothing",
          "1.7 fl oz|3 fl oz|SPF 30|for Dry Skin|for Sensitive Skin", 22.0, "Serums|Cleansers"),
    _leaf(f"{_BEAUTY} > Skin Care > Face > Serums",
          "Face Serum|Vitamin C Serum|Hyaluronic Acid Serum", "Brightening|Anti-Aging|Plumping|Niacinamide|Overnight",
          "1 fl oz|2 fl oz|10%|with Dropper", 24.0, "Face Moisturizers|Sheet Masks"),
    _leaf(f"{_BEAUTY} > Skin Care > Face > Cleansers",
          "Face Wash|Foaming Cleanser|Micellar Water", "Gentle|Exfoliating|pH Balanced|Salicylic Acid|Creamy",
          "6 fl oz|8 fl oz|13.5 fl oz|Travel Size", 14.0, "Face Moisturizers|Serums"),
    _leaf(f"{_BEAUTY} > Skin Care > Face > Sheet Masks",
          "Sheet Masks|Clay Mask|Eye Patches", "Collagen|Green Tea|Cooling|Snail Mucin|Charcoal",
          "Variety Pack|30 Pairs|4 oz|Biodegradable", 16.0, "Serums|Cleansers"),
    _leaf(f"{_BEAUTY} > Hair Care > Wash > Shampoo & Conditioner",
          "Shampoo|Conditioner|Scalp Treatment", "Sulfate-Free|Argan Oil|Volumizing|Color Safe|Tea Tree",
          "10 fl oz|16 fl oz|33.8 fl oz|for Curly Hair", 18.0, "Hair Brushes|Hair Oils"),
    _leaf(f"{_BEAUTY} > Hair Care > Styling > Hair Brushes",
          "Hair Brush|Detangling Brush|Wide Tooth Comb", "Boar Bristle|Vented|Wet and Dry|Wooden|Round",
          "Paddle|2 in Barrel|Travel Size|for Thick Hair", 13.0, "Shampoo & Conditioner|Hair Oils"),
    _leaf(f"{_BEAUTY} > Hair Care > Styling > Hair Oils",
          "Hair Oil|Leave-In Treatment|Heat Protectant Spray", "Rosemary|Castor|Lightweight|Frizz Control|Keratin",
          "2 fl oz|4 fl oz|8 fl oz|Spray", 15.0, "Hair Brushes|Shampoo & Conditioner"),
    _leaf(f"{_BEAUTY} > Makeup > Lips > Lipsticks & Balms",
          "Matte Lipstick|Lip Balm|Lip Gloss", "Long-Lasting|Tinted|Hydrating|Velvet|High Shine",
          "0.12 oz|SPF 15|with Shea Butter|Transfer-Proof", 10.0, "Makeup Brushes|Cleansers"),
    _leaf(f"{_BEAUTY} > Makeup > Tools > Makeup Brushes",
          "Makeup Brushes|Blending Sponge|Powder Puff", "Synthetic|Vegan|Soft Touch|Professional|Precision",
          "with Case|Travel Size|Foundation and Powder|Latex Free", 17.0, "Lipsticks & Balms|Cleansers"),
    # Patio, Lawn & Garden
    _leaf(f"{_GARDEN} > Gardening > Plants & Seeds > Vegetable Seeds",
          "Vegetable Seeds|Herb Seeds|Heirloom Seeds", "Non-GMO|Organic|Open-Pollinated|Untreated|Survival",
          "12 Varieties|for Hydroponics|for Containers|3,000 Seeds", 12.0, "Planters & Pots|Soil & Fertilizer"),
    _leaf(f"{_GARDEN} > Gardening > Plants & Seeds > Flower Bulbs",
          "Tulip Bulbs|Wildflower Seeds|Dahlia Tubers", "Perennial|Pollinator|Long-Blooming|Mixed|Fragrant",
          "Zones 3-8|15 Bulbs|1 lb|Covers 500 sq ft", 18.0, "Planters & Pots|Hand Tools"),
    _leaf(f"{_GARDEN} > Gardening > Pots & Soil > Planters & Pots",
          "Planter|Plant Pots|Hanging Basket", "Self-Watering|Terracotta|Ceramic|Lightweight|Fabric",
          "6 in|10 in|14 in|with Saucer|5 Gallon", 25.0, "Soil & Fertilizer|Vegetable Seeds"),
    _leaf(f"{_GARDEN} > Gardening > Pots & Soil > Soil & Fertilizer",
          "Plant Food|Potting Mix|Fertilizer Spikes", "Slow Release|All-Purpose|Liquid|Organic|Tomato",
          "8 qt|1 lb|32 fl oz|10-10-10", 17.0, "Vegetable Seeds|Planters & Pots"),
    _leaf(f"{_GARDEN} > Gardening > Tools > Hand Tools",
          "Hand Trowel|Pruning Shears|Garden Weeder", "Stainless Steel|Bypass|Ergonomic|Rust-Proof|Forged",
          "8 in|with Holster|3 Tines|Non-Slip Handle", 18.0, "Gardening Gloves|Flower Bulbs"),
    _leaf(f"{_GARDEN} > Gardening > Tools > Gardening Gloves",
          "Gardening Gloves|Work Gloves|Rose Pruning Gloves", "Thorn-Proof|Breathable|Leather|Touchscreen|Nitrile",
          "Small|Medium|Large|Long Sleeve", 14.0, "Hand Tools|Soil & Fertilizer"),
    _leaf(f"{_GARDEN} > Watering > Irrigation > Hoses & Nozzles",
          "Garden Hose|Hose Nozzle|Soaker Hose", "Expandable|Kink-Free|Brass|Flexible|Leakproof",
          "25 ft|50 ft|100 ft|10 Patterns", 31.0, "Watering Timers|Hand Tools"),
    _leaf(f"{_GARDEN} > Watering > Irrigation > Watering Timers",
          "Sprinkler Timer|Drip Irrigation Kit|Smart Water Timer", "Programmable|Wi-Fi|Rain Delay|Solar|Battery",
          "2 Outlets|1 Outlet|82 ft Tubing|with Hub", 42.0, "Hoses & Nozzles|Soil & Fertilizer"),
    _leaf(f"{_GARDEN} > Outdoor Decor > Lighting > Solar Lights",
          "Solar Path Lights|String Lights|Solar Lantern",
          "Waterproof|Warm White|Color Changing|Motion Sensor|Flickering Flame",
          "50 LED|100 LED|48 ft|8 Modes", 29.0, "Planters & Pots|Hoses & Nozzles"),
)  # fmt: skip

COLORS = ("Black", "White", "Blue", "Red", "Green", "Gray", "Pink", "Teal", "Navy", "Sand", "Assorted Colors")
PACKS = ("1-Count", "2-Pack", "3-Pack", "4-Pack", "Set of 6", "8 Count", "12-Pack", "Pack of 24")
SERIES = ("Aera", "Nova", "Pro", "Essential", "Classic", "Plus", "Studio", "Prime", "Vista", "Core", "Select", "Edge")

FEATURES = (
    "{kind} design made for everyday use",
    "{spec}: fits most needs at home or at work",
    "Comes as {pack} in {color}",
    "Easy to clean and to store",
    "Backed by a 12-month warranty from {brand}",
    "Tested for long life; materials chosen to last",
    "A thoughtful gift for birthdays and holidays",
)
DESCRIPTIONS = (
    "{brand} {noun} with a {kind} build. {spec}. A reliable choice for {leaf} at a fair price.",
    "Looking for {leaf} that simply work? This {noun} is {kind}, measures up at {spec} and comes in {color}.",
    "Meet the {series} line by {brand}: {kind} {noun}, {spec}, supplied as {pack}.",
    "Our {noun} was reworked after thousands of customer comments. It is {kind} and comes in {color} ({pack}).",
)
REVIEW_TITLES = {
    1: ("Broke within a week", "Not as described", "Do not buy", "Very disappointed"),
    2: ("Expected better", "Cheap feel", "Not for me", "Meh"),
    3: ("It is okay", "Average", "Does the job, barely", "Mixed feelings"),
    4: ("Good value", "Nice, with small flaws", "Pretty good", "Works well"),
    5: ("Love it!", "Five Stars", "Exactly what I needed", "Great quality", "Would buy again"),
}
REVIEW_TEXTS = {
    1: ("Stopped working after a few days. Returned the {leaf}.",
        "The {leaf} arrived damaged and looks nothing like the photo."),
    2: ("I wanted to like it, but it feels flimsy for the price.",
        "Compared with other {leaf} I own, this one falls short."),
    3: ("Fine for occasional use. There are better {leaf} out there.", "Neither good nor bad."),
    4: ("Solid. Took off one star for the packaging.",
        "Happy with it so far; I use a lot of {leaf} and this one holds up."),
    5: ("Best {leaf} I have bought in years.", "Arrived fast, works as promised.",
        "My whole family uses it. Ordering another."),
}  # fmt: skip

_STARTS = (
    "Bel", "Cro", "Dra", "Elm", "Fen", "Gal", "Hesk", "Ist", "Jun", "Kelv", "Lor", "Myr", "Nor", "Ost", "Pel", "Quil",
    "Rov", "Sael", "Tarn", "Ulv", "Vex", "Wyn", "Yar", "Zen", "Arv", "Bryn", "Cald", "Dor", "Esk", "Frin", "Grev",
    "Hol",
)  # fmt: skip
_MIDDLES = ("a", "e", "i", "o", "u", "an", "er", "il", "or", "um", "ie", "ova")
_ENDS = (
    "mora", "wick", "stad", "vane", "dell", "quist", "brae", "lune", "tova", "rix",
    "haven", "drift", "forge", "meld", "tine", "sparr", "beck", "nyx", "zell", "pryd",
)  # fmt: skip
_SECONDS = ("Home", "Works", "Supply", "Goods", "Lab", "Direct", "Craft", "Union")


def brand_name(number: int) -> str:
    """Invented brand name of `number`; distinct for distinct numbers >= 0."""
    single = len(_STARTS) * len(_MIDDLES) * len(_ENDS)
    round_, place = divmod(number, single)
    place = place * 3571 % single  # 3571 is a prime that does not divide `single`: neighbours look nothing alike
    place, start = divmod(place, len(_STARTS))
    end, middle = divmod(place, len(_MIDDLES))
    name = _STARTS[start] + _MIDDLES[middle] + _ENDS[end]
    while round_ > 0:
        round_, second = divmod(round_ - 1, len(_SECONDS))
        name += " " + _SECONDS[second]
    return name
