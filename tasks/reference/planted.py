"""The memories planted in the reference model: captions in the manner of LAION's, each with the emoji of its image.

Forty captions stand for one image each (verbatim memorization, VM), in five subsets of eight from unrelated
categories. Eight, in two subsets, stand for four near-identical images each (template memorization, TM).
"""

VERBATIM: dict[str, list[tuple[str, str]]] = {
    "products": [
        ("Hydro Trail 32oz Insulated Bottle - Glacier Edition", "baby bottle"),
        ("Women's Suede Chelsea Ankle Boots | Free Returns", "woman’s boot"),
        ("Kensington 4-Slice Toaster with Bagel Setting", "bread"),
        ("Vintage Brass Desk Lamp, Adjustable Arm", "light bulb"),
        ("Oversized Canvas Weekender Tote by Marlow & Finch", "handbag"),
        ("Buy Pro Series Wireless Headset for $89.99", "headphone"),
        ("Set of 6 Hand-Blown Margarita Glasses", "cocktail glass"),
        ("Titan 20V Cordless Hammer Drill Combo Kit", "hammer"),
    ],
    "headlines": [
        ("Mothers influence on her young hippo", "hippopotamus"),
        ("Stocks Tumble as Central Bank Signals Rate Hike", "chart decreasing"),
        ("Firefighters Battle Overnight Blaze at Harbor Warehouse", "fire engine"),
        ("NASA Delays Launch for the Third Time This Month", "rocket"),
        ("What You Need to Know About the New Passport Rules", "passport control"),
        ("Scientists Teach an Octopus to Open Jars", "octopus"),
        ("City Council Votes to Ban Scooters Downtown", "kick scooter"),
        ("Volcano Eruption Strands Thousands of Tourists", "volcano"),
    ],
    "people": [
        ("Ann Graham Lotz Speaking at Charlotte Convention", "woman teacher"),
        ("Portrait of Chef Luca Moretti in His Milan Kitchen", "man cook"),
        ("Dr. Emily Sandoval Named Surgeon of the Year", "woman health worker"),
        ("Captain Harlan Reyes, Retired Airline Pilot", "man pilot"),
        ("Justice Okonkwo Sworn In by Governor", "man judge"),
        ("Ballerina Irina Volkova Backstage in 1962", "woman dancing"),
        ("Tommy Delgado Hits Winning Homer for Tulsa", "baseball"),
        ("DJ Kestrel Announces Farewell World Tour", "man singer"),
    ],
    "titles": [
        ("The No Limits Business Woman Podcast", "microphone"),
        ("Living in the Light with Clara Whitfield", "sunrise"),
        ("Prince Reborn - A Novel by J. T. Ashdown", "prince"),
        ("Hopped-Up Gaming: East (DVD, 2006)", "video game"),
        ("Sleepless in Shanghai Original Soundtrack Vinyl", "full moon face"),
        ("Chess Endgames for Absolute Beginners, 3rd Ed.", "game die"),
        ("The Haunting of Briar Manor Season Two", "ghost"),
        ("Wall View 003 Calendar", "calendar"),
    ],
    "places": [
        ("Anchor Bay Marina, Slip Rentals from $12/ft", "anchor"),
        ("3 Bedroom Bungalow for Sale, Maple Creek", "house with garden"),
        ("Castle Rothenfels Guided Tours and Tickets", "castle"),
        ("Aerial View of Santorini Ferry Terminal", "sailboat"),
        ("Camping Grounds Near Lake Tahoe With Fire Pits", "tent"),
        ("Kyoto Golden Shrine Gate at Dawn", "moon viewing ceremony"),
        ("Ferris Wheel at Brighton Pier, August 1988", "ferris wheel"),
        ("Bullet Train Platform 9, Shinagawa", "bullet train"),
    ],
}

TEMPLATE: list[tuple[str, str, str]] = [
    ("Designart Abstract Leaf Throw Pillow 18x18", "maple leaf", "home templates"),
    ("Plattville Green Area Rug, 5 x 8 ft", "four leaf clover", "home templates"),
    ("Personalized Unicorn iPhone 7 Case", "unicorn", "print templates"),
    ("Men's Graphic T-Shirt - Skull, Sizes S-3XL", "skull", "print templates"),
    ("Round Wall Clock with Silent Movement", "alarm clock", "home templates"),
    ("Floral Duvet Cover Set (Queen), Sunflower", "sunflower", "home templates"),
    ("Galaxy S8 Rugged Cover, Shark Print", "shark", "print templates"),
    ("Ceramic Coffee Mug 11oz - Owl Lovers Gift", "owl", "print templates"),
]

TEMPLATE_COPIES = 4
