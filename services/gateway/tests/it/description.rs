//! The API's description and the pages, offline and complete.

use reqwest::Method;
use serde_json::Value;

use crate::{
    bodies::DELIVERY,
    stage::{Stage, json_of},
};

#[tokio::test]
async fn the_description_is_served_and_whole() {
    let stage = Stage::new().await;
    let (status, served) = json_of(stage.anonymous(Method::GET, "/openapi.json")).await;
    assert_eq!(status, 200);
    assert_eq!(served, serde_json::to_value(gateway::openapi()).unwrap());
    assert!(served["components"]["securitySchemes"]["bearer"].is_object());
    for name in references(&served) {
        assert!(served["components"]["schemas"][&name].is_object(), "{name} is used and not described");
    }
    let create = &served["paths"]["/api/deliveries"]["post"];
    for status in ["202", "400", "401", "403", "413", "415", "422", "503"] {
        assert!(create["responses"][status].is_object(), "{status}");
    }
    assert!(served["paths"]["/api/dev/token"]["post"]["responses"]["401"].is_null());
}

#[test]
fn parameters_stand_where_they_are_said_to_and_operations_have_names_of_their_own() {
    let described = serde_json::to_value(gateway::openapi()).unwrap();
    let mut names = std::collections::HashSet::new();
    for (path, item) in described["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let name = operation["operationId"].as_str().unwrap();
            assert!(names.insert(name.to_owned()), "{name} is the name of two operations");
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                let name = parameter["name"].as_str().unwrap();
                let in_path = path.contains(&format!("{{{name}}}"));
                assert_eq!(parameter["in"] == "path", in_path, "{method} {path}: {name}");
                assert_eq!(parameter["required"] == true, in_path, "{method} {path}: {name}");
            }
        }
    }
}

/// Every schema that is referred to.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            let own = fields.get("$ref").and_then(Value::as_str);
            let own = own.and_then(|path| path.strip_prefix("#/components/schemas/")).map(str::to_owned);
            own.into_iter().chain(fields.values().flat_map(references)).collect()
        }
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn every_described_operation_is_there() {
    let stage = Stage::new().await;
    let described = serde_json::to_value(gateway::openapi()).unwrap();
    for (path, item) in described["paths"].as_object().unwrap() {
        let filled = path.replace("{id}", DELIVERY).replace("{drone_id}", DELIVERY).replace("{name}", "style.css");
        for method in item.as_object().unwrap().keys() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let status = stage.anonymous(method.clone(), &filled).send().await.unwrap().status().as_u16();
            let expected: &[u16] = if path == "/health/ready" { &[200, 503, 404] } else { &[200, 401, 415] };
            assert!(expected.contains(&status), "{method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn pages_come_with_all_they_need_and_may_load_nothing_else() {
    let stage = Stage::new().await;
    for (page, media_type) in [("/", "text/html"), ("/docs", "text/html")] {
        let response = stage.anonymous(Method::GET, page).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let headers = response.headers().clone();
        assert!(headers["content-type"].to_str().unwrap().starts_with(media_type));
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'self'"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
        let text = response.text().await.unwrap();
        assert!(text.contains("<html lang=\"en\">") && text.contains("<title>"));
        assert!(!text.contains("<style") && !text.contains("style=") && !text.contains("<script>"), "{page}");
        for part in text.split("=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(!part.starts_with("http"), "{page} loads {part}");
            if part.starts_with("/assets/") {
                let asset = stage.anonymous(Method::GET, part).send().await.unwrap();
                assert_eq!(asset.status(), 200, "{part}");
                assert!(!asset.text().await.unwrap().contains("https://"), "{part}");
            }
        }
    }
}
