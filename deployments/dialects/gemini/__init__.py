"""Google's Gemini API: generateContent, streamGenerateContent, countTokens, embedContent, models."""
