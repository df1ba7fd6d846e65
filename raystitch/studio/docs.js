// The endpoint's OpenAPI document in Swagger UI, from files of this server alone.
window.SwaggerUIBundle({ url: "openapi.json", dom_id: "#viewer", deepLinking: true });
