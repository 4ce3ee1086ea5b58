//! The two HTML pages, written out. Every text that came from elsewhere goes through [`escape`].

use serde_json::Value;

/// The front page: which service calls which, and the way to the book.
pub(super) fn index(details: &str, reviews: &str, ratings: &str) -> String {
    let row = |name: &str, at: &str, children: &str| {
        format!(
            "<tr><th>name</th><td>{}</td></tr><tr><th>endpoint</th><td>{name}</td></tr>\
             <tr><th>children</th><td>{children}</td></tr>",
            escape(at)
        )
    };
    let table = |rows: &str| format!("<table border=\"1\">{rows}</table>");
    let reviews = row("reviews", reviews, &table(&row("ratings", ratings, "")));
    let children = format!("{}{}", table(&row("details", details, "")), table(&reviews));
    let tree = table(&row("productpage", "productpage", &children));
    layout(&format!(
        "<main>\n<h1>BookInfo Sample</h1>\n<p>A page put together by four services. This is who calls whom:</p>\n{tree}\n\
         <p>Look at the book as <a href=\"/productpage?u=normal\">a normal user</a> \
         or as <a href=\"/productpage?u=test\">a test user</a>.</p>\n</main>\n"
    ))
}

/// The page of the book. Each of `details` and `reviews` says first whether it is what was asked for.
pub(super) fn product(product: &Value, details: (bool, &Value), reviews: (bool, &Value), user: Option<&str>) -> String {
    let account = match user {
        Some(user) => {
            format!("<span class=\"user\">{}</span>\n<a class=\"button\" href=\"logout\">Sign out</a>", escape(user))
        }
        None => "<button id=\"sign-in-button\" type=\"button\" \
                 onclick=\"document.getElementById('dialog').showModal()\">Sign in</button>"
            .to_owned(),
    };
    let details = match details {
        (true, details) => details_table(details),
        (false, failure) => problem("Error fetching product details", failure),
    };
    let reviews = match reviews {
        (true, reviews) => review_list(reviews),
        (false, failure) => problem("Error fetching product reviews", failure),
    };
    // The description is our own HTML, the only text that is not escaped.
    let description = product["descriptionHtml"].as_str().unwrap_or_default();
    layout(&format!(
        r##"<nav>
<a class="brand" href="/productpage">BookInfo Sample</a>
<div class="account">{account}</div>
</nav>
<dialog id="dialog">
<form action="login" method="post" name="login_form">
<h2>Please sign in</h2>
<label>User name <input type="text" name="username" id="username" autocomplete="username" required></label>
<label>Password <input type="password" name="passwd" id="passwd" autocomplete="current-password"></label>
<div class="actions">
<button type="button" onclick="document.getElementById('dialog').close()">Cancel</button>
<button type="submit">Sign in</button>
</div>
</form>
</dialog>
<main>
<header>
<h1>{title}</h1>
<p>{description}</p>
</header>
<section id="details">
{details}</section>
<section id="reviews">
{reviews}</section>
</main>
"##,
        title = escape_value(&product["title"]),
    ))
}

fn details_table(details: &Value) -> String {
    let cells = [
        ("ISBN-10", "ISBN-10"),
        ("Publisher", "publisher"),
        ("Pages", "pages"),
        ("Type", "type"),
        ("Language", "language"),
    ];
    let heads: String = cells.iter().map(|(title, _)| format!("<th>{title}</th>")).collect();
    let data: String = cells.iter().map(|(_, key)| format!("<td>{}</td>", escape_value(&details[key]))).collect();
    format!(
        "<h2>Book Details</h2>\n<table>\n<thead><tr>{heads}</tr></thead>\n<tbody><tr>{data}</tr></tbody>\n</table>\n"
    )
}

fn review_list(reviews: &Value) -> String {
    let list = reviews["reviews"].as_array().map(Vec::as_slice).unwrap_or_default();
    let blocks: String = list.iter().map(review).collect();
    let cluster = match &reviews["clustername"] {
        Value::String(name) if name != "null" => format!(" on cluster <u>{}</u>", escape(name)),
        _ => String::new(),
    };
    let pod = escape_value(&reviews["podname"]);
    format!("<h2>Book Reviews</h2>\n{blocks}<p class=\"served-by\">Reviews served by: <u>{pod}</u>{cluster}</p>\n")
}

fn review(review: &Value) -> String {
    let rating = match &review["rating"] {
        Value::Null => String::new(),
        rating if rating["stars"].is_number() => stars(rating),
        rating => format!("<p class=\"problem\">{}</p>\n", escape_value(&rating["error"])),
    };
    format!(
        "<article class=\"review\">\n<blockquote>{}</blockquote>\n<p class=\"reviewer\">{}</p>\n{rating}</article>\n",
        escape_value(&review["text"]),
        escape_value(&review["reviewer"]),
    )
}

fn stars(rating: &Value) -> String {
    const SHAPE: &str = "M10 1.6l2.6 5.3 5.8.8-4.2 4.1 1 5.8-5.2-2.7-5.2 2.7 1-5.8L1.6 7.7l5.8-.8z";
    let filled = rating["stars"].as_u64().unwrap_or_default().min(5);
    let shapes: String = (0..5)
        .map(|n| {
            // The odd identifier, repeated and with a space, is what scripts around Bookinfo count stars by.
            let kind =
                if n < filled { "id=\"glyphicon glyphicon-star\" class=\"star\"" } else { "class=\"star-outline\"" };
            format!("<svg {kind} viewBox=\"0 0 20 20\" aria-hidden=\"true\"><path d=\"{SHAPE}\"/></svg>\n")
        })
        .collect();
    format!("<div class=\"stars text-{}-500\">\n{shapes}</div>\n", escape_value(&rating["color"]))
}

fn problem(title: &str, failure: &Value) -> String {
    format!("<h2 class=\"problem\">{title}</h2>\n<p>{}</p>\n", escape_value(&failure["error"]))
}

fn layout(body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Simple Bookstore App</title>\n<link rel=\"stylesheet\" href=\"/static/bookinfo.css\">\n</head>\n\
         <body>\n{body}</body>\n</html>\n"
    )
}

fn escape_value(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => escape(text),
        other => escape(&other.to_string()),
    }
}

fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut html, char| {
        match char {
            '&' => html.push_str("&amp;"),
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '"' => html.push_str("&quot;"),
            '\'' => html.push_str("&#39;"),
            other => html.push(other),
        }
        html
    })
}
